"""A node with torch, numpy, tqdm and safetensors alone makes the files that the stages make, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stages.node
from pipeline import bare, params, presets
from pipeline.attacks import suite
from pipeline.cell import Cell
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.params import Params

ROOT = Path(__file__).parent.parent
# What the node lacks, and more of what is installed here: importing any of it fails.
ABSENT = [
    *("PIL", "dvc", "jinja2", "matplotlib", "mlflow", "optuna", "pandas", "pooch", "pyautoattack", "pydantic"),
    *("requests", "ruamel", "scipy", "sklearn", "yaml"),
]
# Methods of every kind, and every family of attacks that needs no further package.
OVERRIDES = [
    "train.epochs=1",
    "train.batch_size=256",
    "matrix.methods=[at_pgd, adt_exp, adt_imp_am]",
    "matrix.seeds=[0]",
    "ablation.attacks=[pgd-3]",
    "evaluation.attacks={fgsm: {family: fgsm}, pgd-3: {family: pgd, steps: 3, step_size: 0.1}, "
    "mim-2: {family: mim, steps: 2, step_size: 0.1, momentum: 1.0}, "
    "cw-2: {family: cw, steps: 2, step_size: 0.1, confidence: 50.0, restarts: 2, rule: any}, "
    "fea-2: {family: fea, steps: 1, step_size: 0.1, targets: 2}, "
    "adt-exp: {family: adt_exp, steps: 1, step_size: 0.3, samples: 2, lam: 0.01, draws: 2}, "
    "spsa-1: {family: spsa, steps: 1, step_size: 0.1, samples: 2, sigma: 0.01}}",
]


def smoke(*overrides: str) -> Params:
    return params.parse(presets.parse_text(presets.render("smoke", overrides), "test"), "test")


def node(workspace: Path, *arguments: str, absent: list[str] = ABSENT) -> subprocess.CompletedProcess[str]:
    """`python -m stages.node` in an interpreter that finds none of the packages `absent`."""
    code = (
        "import json, sys\n"
        "sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))\n"
        "from stages import node\n"
        "from stages.common import run_stage\n"
        "run_stage(lambda: node.main(sys.argv[2:]))"
    )
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, json.dumps(absent), *arguments]
    return subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True)


def workspace(folder: Path, p: Params) -> Path:
    """A workspace with the code and a small data set, and the job file of `p`."""
    folder.mkdir()
    for part in ("pipeline", "stages", "plugins"):
        (folder / part).symlink_to(ROOT / part)
    digits(folder / "data/digits", p)
    write_json(folder / "job.json", bare.job(p))
    return folder


def digits(folder: Path, p: Params) -> None:
    from pipeline.data import store
    from pipeline.data.sources import SOURCES

    store.save(SOURCES["digits"](p.data), folder, "digits")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", presets.names())
def test_a_job_says_what_the_checked_parameters_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = params.parse(presets.read_yaml(ROOT / f"presets/{name}.yaml"), name)
    job = bare.Job(json.loads(json.dumps(bare.job(p))))
    monkeypatch.setattr("pipeline.cell.load_meta", lambda folder: {"sha256": "ab" * 32})
    for section in bare.SECTIONS:
        assert getattr(job, section).model_dump() == getattr(p, section).model_dump()
        for key, value in getattr(p, section).model_dump(by_alias=True).items():
            assert getattr(getattr(job, section), key) == value
    for method in p.matrix.methods:
        ours, theirs = Cell(job, method, 3), Cell(p, method, 3)
        assert json.dumps(ours.description()) == json.dumps(theirs.description())
        assert ours.fingerprint() == theirs.fingerprint()
        assert ours.settings.model_dump() == theirs.settings.model_dump()
    for attack in suite.attacks(p.evaluation):
        assert suite.said(job, attack) == suite.said(p, attack)
    assert job.evaluation.model_dump(exclude={"attacks"}) == p.evaluation.model_dump(exclude={"attacks"})


def test_copies_and_dumps_are_those_of_checked_parameters() -> None:
    checked = params.Train.model_validate(smoke().train.model_dump())
    plain = bare.Settings(checked.model_dump())
    for values in ({"epochs": 7}, {"optimizer": params.Optimizer(lr=1.0, momentum=0.0, weight_decay=0.0)}):
        changed = {k: v if isinstance(v, int) else v.model_dump() for k, v in values.items()}
        assert plain.model_copy(update=changed).model_dump() == checked.model_copy(update=values).model_dump()
    assert plain.model_dump(exclude_none=True) == checked.model_dump(exclude_none=True)
    with pytest.raises(AttributeError):
        plain.epochs = 3
    with pytest.raises(AttributeError, match="no_such_key"):
        _ = plain.no_such_key


@pytest.mark.parametrize("method", ["at_fgsm", "feature_scatter", "adt_exp", "adt_exp_am", "adt_imp_am"])
def test_switches_of_a_bare_method_are_filled_in_as_those_of_a_checked_one(method: str) -> None:
    p = smoke(f"matrix.methods=[at_pgd, {method}]")
    stated = p.method(method).model_dump(by_alias=True, exclude_none=True)
    assert dict(bare.method(method, stated)) == bare.job(p)["methods"][method]


@pytest.mark.parametrize("content", ["{}", "[1]", "no JSON", None])
def test_what_is_no_job_file_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError, match="no job file") as told:
        bare.load(tmp_path / "job.json")
    assert "\n" not in str(told.value)


def test_a_bare_node_makes_the_files_of_the_stages_to_the_bit(tmp_path: Path) -> None:
    p = smoke(*OVERRIDES)
    there = workspace(tmp_path / "node", p)
    done = node(there, "run", "job.json")
    assert done.returncode == 0, done.stderr
    home = workspace(tmp_path / "home", p)
    (home / "params.yaml").write_text(presets.render("smoke", OVERRIDES))
    code = (
        "import sys\nfrom pipeline import params\nfrom stages import attack, train\np = params.load()\n"
        "for method in p.matrix.methods: train.train(p, method, 0), attack.attack(p, method, 0)"
    )
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, check=True, capture_output=True)
    made = sorted(file.relative_to(home) for name in ("runs", "verdicts") for file in (home / name).rglob("*.*"))
    assert len(made) == len(p.matrix.methods) * (6 + 2)
    assert [file for file in made if (home / file).read_bytes() != (there / file).read_bytes()] == []
    records = [sorted(path.name for path in (w / ".work/record").iterdir()) for w in (home, there)]
    assert records[0] == records[1]
    again = node(there, "run", "job.json")
    assert (again.returncode, again.stdout) == (0, "")  # nothing is left to do


def test_an_attack_that_needs_an_absent_package_is_one_clear_line(tmp_path: Path) -> None:
    p = smoke("train.epochs=1", "matrix.methods=[at_pgd]", "matrix.seeds=[0]", "evaluation.attacks.autoattack.steps=1")
    done = node(workspace(tmp_path / "node", p), "run", "job.json")
    assert (done.returncode, done.stdout) == (2, "")  # before anything is trained
    assert done.stderr == (
        "error: evaluation.attacks.autoattack: family autoattack needs the package pyautoattack, which is not installed"
        " here; install it, or leave the attack out at home, or train alone (--only train) and attack at home\n"
    )


def test_a_cell_that_is_not_in_the_job_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", bare.job(smoke()))
    with pytest.raises(UserError, match="--seed 7: not in the job; there are: 0, 1"):
        stages.node.main(["run", str(tmp_path / "job.json"), "--seed", "7"])
