"""What travels to the nodes is the commit; so the workspace must not have anything else that results depend on."""

import re
import subprocess
from pathlib import Path

from pipeline.errors import UserError
from pipeline.graph import dvc
from pipeline.sharing import LOCK_FILE, PIPELINE_FILE
from pipeline.yaml_files import read_yaml

SHOWN = 5  # files that a complaint names


def refuse_uncommitted() -> None:
    """`UserError` that names files in which a clean clone of the commit would differ from this workspace.

    They are tracked files with changes, and files without git under a dependency of a stage: code, parameters,
    and what other parameters left in a folder that a stage reads. What stages make may differ: outputs, dvc.lock.
    """
    outputs = re.findall(r'^"([^"]+)";$', dvc("dag", "--outs", "--dot"), re.MULTILINE)
    changed = _files("diff", "--name-only", "HEAD", "--")
    if inputs := [path for path in changed if not _is_made(path, outputs)]:
        raise UserError(f"--ray: uncommitted changes of {_some(inputs)}; nodes run the commit: commit or undo them")
    strangers = _files("ls-files", "--others", "--", *_dependencies(), "params.yaml", str(PIPELINE_FILE))
    strangers = _without_ignored([path for path in strangers if not _is_made(path, outputs)])
    if strangers:
        raise UserError(
            f"--ray: not in the commit, but read by stages: {_some(strangers)}; add them to git or remove them"
            " (`git clean -d -x --interactive` asks for each)"
        )


def head() -> str:
    """The commit's full name."""
    return _git("rev-parse", "HEAD").decode().strip()


def bundle() -> bytes:
    """The commit with its history, for `git fetch`."""
    return _git("bundle", "create", "--quiet", "-", "HEAD")


def _dependencies() -> list[str]:
    """What stages depend on, as far as dvc.yaml names it without parameters (with them, it names outputs)."""
    stages = read_yaml(PIPELINE_FILE)["stages"].values()
    return sorted({dep for stage in stages for dep in stage.get("do", stage).get("deps", []) if "$" not in dep})


def _is_made(path: str, outputs: list[str]) -> bool:
    """Whether a stage, or DVC itself, writes this file."""
    own = path == str(LOCK_FILE) or Path(path).name == ".gitignore"
    return own or any(path == output or path.startswith(f"{output}/") for output in outputs)


def _without_ignored(paths: list[str]) -> list[str]:
    """Without what .dvcignore keeps out of dependencies."""
    if not paths:
        return []
    command = ["dvc", "check-ignore", "--stdin"]
    ignored = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True).stdout.splitlines()
    return [path for path in paths if path not in set(ignored)]


def _files(*arguments: str) -> list[str]:
    command, *rest = arguments
    return [path for path in _git(command, "-z", *rest).decode().split("\0") if path]


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"git {arguments[0]}: {said[0]}")
    return done.stdout


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
