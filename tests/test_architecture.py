"""Who may import whom, what importing does, and whether dvc.yaml names the code that its stages use."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.cell import TRAINING_CODE
from pipeline.repro import RESUMABLE
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("pipeline", "stages")
    for path in sorted((ROOT / package).rglob("*.py"))
}
PIPELINE = sorted(name for name in SOURCES if name.split(".")[0] == "pipeline")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that a piece of code imports when it runs, as dotted paths; type checking is not running."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not resolved here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def imported(module: str) -> set[str]:
    """The dotted paths that a first-party module imports."""
    return set(imports(ast.parse(SOURCES[module].read_text())))


def importers(package: str) -> set[str]:
    """First-party packages of pipeline/, or single modules, that import a third-party package."""
    found = {module for module in SOURCES if package in {name.split(".")[0] for name in imported(module)}}
    return {".".join(module.split(".")[:2]) for module in found}


@cache
def closure(module: str) -> frozenset[str]:
    """The first-party modules that importing `module` runs, itself and packages on the way included."""
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        prefixes = {".".join(parts[:count]) for count in range(1, len(parts) + 1)} & SOURCES.keys()
        for new in prefixes - found:
            found.add(new)
            waiting |= imported(new)
    return frozenset(found)


# Imports run downward


@pytest.mark.parametrize(
    "package, only",
    [
        ("mlflow", {"pipeline.tracking"}),
        ("optuna", {"pipeline.search"}),
        ("matplotlib", {"pipeline.plots"}),
        ("pooch", {"pipeline.data"}),
        ("PIL", {"pipeline.data"}),
        ("ray", {"pipeline.cluster"}),
        ("dvc", set()),
    ],
)
def test_a_heavy_library_has_one_importer(package: str, only: set[str]) -> None:
    assert importers(package) == only


def test_the_library_does_not_know_the_stages() -> None:
    assert not {module for module in PIPELINE if "stages" in closure(module)}


@pytest.mark.parametrize("one, other", [("adversaries", "attacks"), ("attacks", "adversaries")])
def test_adversaries_and_attacks_do_not_know_each_other(one: str, other: str) -> None:
    members = {module for module in PIPELINE if module.startswith(f"pipeline.{one}")}
    assert len(members) > 2
    for module in members:
        assert not {name for name in closure(module) if name.startswith(f"pipeline.{other}")}, module


@pytest.mark.parametrize("name", ["perturbation", "losses", "seeding", "ascent", "distribution", "models", "verdicts"])
def test_the_ground_floor_knows_neither_training_nor_attacks(name: str) -> None:
    upper = ("pipeline.adversaries", "pipeline.attacks", "pipeline.training", "pipeline.cell", "pipeline.params")
    assert not {module for module in closure(f"pipeline.{name}") if module.startswith(upper)}


# Importing


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints, in an environment that no import of this process has touched."""
    environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_and_attacking_need_little_more_than_torch_and_numpy() -> None:
    absent = [
        "pydantic",
        "mlflow",
        "optuna",
        "matplotlib",
        "sklearn",
        "scipy",
        "ruamel",
        "dvc",
        "tqdm",
        "PIL",
        "pooch",
        "requests",
    ]
    needed = ["training.loop", "adversaries", "attacks.loop", "attacks.catalogue", "cell", "verdicts", "models.weights"]
    python(
        "import importlib, json, sys\n"
        "absent, needed = map(json.loads, sys.argv[1:])\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "for name in needed: importlib.import_module('pipeline.' + name)",
        json.dumps(absent),
        json.dumps(needed),
    )


def test_importing_leaves_the_environment_and_the_working_folder_alone(tmp_path: Path) -> None:
    # MLflow reads its settings while it is imported, so `tracking` must set them; `__main__` is the program.
    quiet = [name for name in PIPELINE if not name.startswith(("pipeline.tracking", "pipeline.__main__"))]
    told = python(
        "import importlib, json, os, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "os.chdir(sys.argv[2])\n"
        "changes = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    before = dict(os.environ)\n"
        "    importlib.import_module(name)\n"
        "    if before != dict(os.environ): changes[name] = sorted(set(before.items()) ^ set(os.environ.items()))\n"
        "print(json.dumps(changes))",
        json.dumps(quiet),
        str(tmp_path),
    )
    assert json.loads(told) == {}
    assert not list(tmp_path.iterdir())


# dvc.yaml

STAGES: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.yaml")["stages"]
# Code that a stage runs but that cannot change its numbers.
HARMLESS = {
    "pipeline/__init__.py": "a docstring and the version",
    "pipeline/errors.py": "the exception for users",
    "pipeline/params/__init__.py": "checks parameters; their values are dependencies under `params`",
    "pipeline/params/ablation.py": "as above",
    "pipeline/params/attack.py": "as above",
    "pipeline/params/base.py": "as above",
    "pipeline/params/data.py": "as above",
    "pipeline/params/evaluation.py": "as above",
    "pipeline/params/methods.py": "as above",
    "pipeline/params/protocol.py": "as above",
    "pipeline/params/search.py": "as above",
    "pipeline/params/studies.py": "as above",
    "pipeline/params/training.py": "as above",
    "pipeline/yaml_files.py": "reads parameters; their values are dependencies under `params`",
    "pipeline/gauges.py": "samples the GPU for trackers, outside of outputs",
    "pipeline/parallel/__init__.py": "names what others import",
    "pipeline/parallel/launch.py": "starts processes; how many there are is in the fingerprint of a training",
    "pipeline/parallel/run.py": "as above",
    "pipeline/slots.py": "counts the cores and GPUs of a machine",
    "pipeline/parallel/watch.py": "ends processes when one of them hangs",
    "pipeline/memory.py": "names a batch size that fits when memory ran out; there are no outputs then",
    "pipeline/live.py": "tells trackers about running stages, outside of outputs",
    "pipeline/progress.py": "progress on the terminal",
    "stages/__init__.py": "a docstring",
    "stages/common.py": "exit status and paths",
}


def code_of(stage: str) -> set[str]:
    """The first-party files that a stage's command runs."""
    module = STAGES[stage]["cmd"].split()[2]
    return {str(SOURCES[name].relative_to(ROOT)) for name in closure(module)}


def code_dependencies(stage: str) -> list[str]:
    """The dependencies of a stage that are code, not data."""
    return [dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline/", "stages/"))]


def is_covered(file: str, dependencies: list[str]) -> bool:
    return any(file == dep or file.startswith(f"{dep}/") for dep in dependencies)


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_stage_depends_on_all_the_code_it_runs(stage: str) -> None:
    needed = code_of(stage) - HARMLESS.keys()
    assert {file for file in needed if not is_covered(file, code_dependencies(stage))} == set()


def test_a_stage_depends_on_no_code_it_does_not_run(stage: str) -> None:
    used = code_of(stage)
    assert [dep for dep in code_dependencies(stage) if not any(is_covered(file, [dep]) for file in used)] == []


def test_a_stage_depends_on_no_code_that_does_not_exist(stage: str) -> None:
    assert [dep for dep in code_dependencies(stage) if not (ROOT / dep).exists()] == []


def test_every_other_dependency_is_an_output_of_another_stage(stage: str) -> None:
    kinds = ("outs", "metrics", "plots")
    listed = [out for other in STAGES.values() for kind in kinds for out in other.get(kind, [])]
    outputs = [path for out in listed for path in output_paths(out)]
    data = [
        dep
        for dep in STAGES[stage]["deps"]
        if dep not in [*code_dependencies(stage), "plugins/sets", "plugins/attacks"]
    ]
    assert [dep for dep in data if not any(out == dep or out.startswith(f"{dep}/") for out in outputs)] == []


def output_paths(out: str | dict[str, Any]) -> list[str]:
    return [out] if isinstance(out, str) else list(out)


def test_the_stages_that_build_the_perturbation_set_depend_on_the_users_own_ones(stage: str) -> None:
    builds = "pipeline/perturbation.py" in code_of(stage)
    assert ("plugins/sets" in STAGES[stage]["deps"]) == builds


def test_the_stages_that_attack_models_depend_on_the_users_own_attacks(stage: str) -> None:
    assert ("plugins/attacks" in STAGES[stage]["deps"]) == ("pipeline/attacks/catalogue.py" in code_of(stage))


def test_what_is_harmless_exists_and_is_used() -> None:
    everything = set().union(*map(code_of, STAGES))
    assert everything >= HARMLESS.keys()


def test_the_fingerprint_of_a_training_covers_the_code_that_dvc_watches() -> None:
    watched = [dep for dep in code_dependencies("train") if dep != "stages/train.py"]
    assert sorted(TRAINING_CODE) == sorted(watched)


def test_a_forced_reproduction_forgets_whatever_a_stage_could_go_on_from() -> None:
    sources = [path.read_text() for folder in ("stages", "pipeline/search") for path in (ROOT / folder).glob("*.py")]
    kept = {name for text in sources for name in re.findall(r'WORK / "(\w+)"', text)}
    assert len(kept) > 5 and kept <= set(RESUMABLE)
