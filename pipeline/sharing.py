"""Results for other machines: a DVC remote from which `dvc repro --pull` restores a stage without its dvc.lock.

`dvc push --run-cache` alone leaves out outputs that are `cache: false` (they live in
git), and a stage with one among its `outs` has no place in the run cache at all. Here a
twin of the project stands in for it: a temporary folder of links into the workspace with
the same cache, the same dvc.lock, and a dvc.yaml that keeps every output in DVC. Keys of
the run cache know commands, dependencies and names of outputs, so they are the same.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.graph import dvc, stage_graph
from pipeline.yaml_files import read_yaml

PIPELINE_FILE, LOCK_FILE = Path("dvc.yaml"), Path("dvc.lock")
OUTPUTS = ("outs", "metrics", "plots")
Lock = dict[str, Any]  # stage -> what dvc.lock says of it


def push(remote: str, names: Iterable[str] = ()) -> list[str]:
    """Push results of the stages called `names` (cells, or "train" for every cell of it; none: all); returns them.

    Everything that `dvc repro --pull` needs elsewhere goes to `remote`: the run cache and the
    objects of all outputs. Stages that are out of date have no result to share: named ones are
    refused with `UserError`, the others left out. Remotes are only ever added to, file by file
    under the name of the content, so that any number of machines may push at once.
    """
    check_remote(remote)
    changed = json.loads(dvc("status", "--json"))
    wanted = _chosen(list(names))
    stale = [stage for stage in wanted if stage in changed]
    if names and stale:
        raise UserError(f"{stale[0]}: out of date, so there is no result to push; `dvc repro {stale[0]}` makes it")
    stages = [stage for stage in wanted if stage not in changed]
    if stages:
        plain = _stages_with_outputs_outside()
        outside = [stage for stage in stages if stage.partition("@")[0] in plain]
        with _twin(read_lock()) as run:
            if outside:
                run("commit", "--quiet", "--force", "--no-relink", *outside)
            run("push", "--quiet", "--run-cache", "--remote", remote, *stages)
    return stages


def fetch(remote: str, lock: Lock, stages: Iterable[str]) -> None:
    """Fetch the run cache and every output of `stages` as `lock` describes them into this workspace's cache."""
    with _twin(lock, linked=False) as run:
        run("fetch", "--quiet", "--run-cache", "--remote", remote, *stages)


def check_remote(name: str) -> None:
    """`UserError` unless `name` is a remote that can hold a run cache."""
    options = _options()
    if f"remote.{name}.url" not in options:
        there = sorted({key.split(".", 1)[1].rpartition(".")[0] for key in options if key.startswith("remote.")})
        have = f"there are: {', '.join(there)}" if there else "there are none; `dvc remote add` makes one"
        raise UserError(f"--remote {name}: no such DVC remote; {have}")
    url = options[f"remote.{name}.url"]
    versioned = [key for key in ("worktree", "version_aware") if options.get(f"remote.{name}.{key}") == "true"]
    if url.startswith(("http://", "https://")) or versioned:
        why = f"with {versioned[0]}" if versioned else "over HTTP"
        raise UserError(f"--remote {name}: {url}: DVC keeps no run cache on remotes {why}; use another kind")


def read_lock() -> Lock:
    """The stages of dvc.lock; {} where there is no such file."""
    return (read_yaml(LOCK_FILE) or {}).get("stages", {}) if LOCK_FILE.exists() else {}


def lock_text(lock: Lock) -> str:
    """A dvc.lock that holds `lock`, for a project that is thrown away: JSON, which is YAML, too."""
    return json.dumps({"schema": "2.0", "stages": lock})


def pipeline_text() -> str:
    """The dvc.yaml of this workspace with no output left outside of DVC, for a project that is thrown away."""
    pipeline = read_yaml(PIPELINE_FILE)
    for stage in pipeline["stages"].values():
        body = stage.get("do", stage)
        for kind in OUTPUTS:
            if kind in body:
                body[kind] = [_inside(output) for output in body[kind]]
    return json.dumps(pipeline)


def config_text(**settings: str) -> str:
    """This workspace's DVC configuration of all levels, remotes with absolute paths; `settings` (core_remote) win."""
    options = {key: value for key, value in _options().items() if key.startswith(("core.", "remote.", "cache."))}
    for machine_of_its_own in ("cache.dir", "core.site_cache_dir", "core.autostage"):
        options.pop(machine_of_its_own, None)
    options |= {key.replace("_", ".", 1): value for key, value in settings.items()}
    sections: dict[str, list[str]] = {}
    for key, value in options.items():
        section, _, option = key.rpartition(".")
        kind, _, name = section.partition(".")
        quote = "'" if '"' in value else '"'
        sections.setdefault(f"'{kind} \"{name}\"'" if name else kind, []).append(f"{option} = {quote}{value}{quote}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def _options() -> dict[str, str]:
    """`dvc config --list`: "remote.NAME.url" and so on; the local level wins."""
    lines = dvc("config", "--list").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _chosen(names: list[str]) -> list[str]:
    graph = stage_graph()
    for name in names:
        if not any(name in (stage, stage.partition("@")[0]) for stage in graph):
            raise UserError(f"{name}: dvc.yaml has no such stage; `dvc stage list` names them")
    return [stage for stage in graph if not names or stage in names or stage.partition("@")[0] in names]


def _stages_with_outputs_outside() -> set[str]:
    """The stages of dvc.yaml that keep an output out of DVC (`cache: false`)."""
    stages = read_yaml(PIPELINE_FILE)["stages"]
    bodies = {name: stage.get("do", stage) for name, stage in stages.items()}
    return {
        name
        for name, body in bodies.items()
        if any(_inside(output) != output for kind in OUTPUTS for output in body.get(kind, []))
    }


def _inside(output: str | dict[str, Any]) -> str | dict[str, Any]:
    """An output of dvc.yaml without `cache: false`."""
    if isinstance(output, str):
        return output
    ((path, settings),) = output.items()
    kept = {key: value for key, value in (settings or {}).items() if key != "cache"}
    return {path: kept} if kept else path


@contextlib.contextmanager
def _twin(lock: Lock, linked: bool = True) -> Iterator[Any]:
    """A function that runs DVC commands in a twin of this workspace; `linked`: with the workspace's files."""
    workspace = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="dvc-twin-") as name:
        folder = Path(name)
        config = config_text(core_no_scm="true", cache_dir=dvc("cache", "dir").strip())
        write_text(folder / ".dvc" / "config", config)
        write_text(folder / PIPELINE_FILE, pipeline_text())
        write_text(folder / LOCK_FILE, lock_text(lock))
        own = {".dvc", ".git", str(PIPELINE_FILE), str(LOCK_FILE)}
        for entry in workspace.iterdir():
            if entry.name not in own and (linked or entry.suffix in (".yaml", ".yml", ".json", ".toml")):
                (folder / entry.name).symlink_to(entry)

        def run(*arguments: str) -> None:
            environment = os.environ | {"DVC_SITE_CACHE_DIR": str(folder / ".dvc" / "site")}
            command = ["dvc", *arguments]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            # A run cache that cannot be copied is an error to DVC's log alone, not to its exit status.
            if done.returncode or "failed to transfer" in done.stderr:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason given"]
                raise UserError(f"dvc {arguments[0]}: {said[-1].removeprefix('ERROR: ')}")

        yield run
