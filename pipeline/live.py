"""Let a tracker watch: stages leave word of themselves in `.work/`, and never import or wait for one.

`.work/live/PID` stands while a stage runs; `.work/train/FINGERPRINT/` holds a
running training's description and history; `.work/record/KEY.json` keeps what must
not enter a deterministic output: when, how long, on which machine and commit.
"""

import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import gauges
from pipeline.files import read_json, write_json, write_text

WORK = Path(".work")
SWITCH = "ADT_LIVE"  # environment: "0" keeps stages from starting the follower


@contextlib.contextmanager
def presence() -> Iterator[None]:
    """Mark this process as at work, and see to it that somebody mirrors its runs to MLflow."""
    mark = WORK / "live" / str(os.getpid())
    write_text(mark, "")
    _start_follower()
    try:
        with gauges.sampling():
            yield
    finally:
        mark.unlink(missing_ok=True)


def anyone_present() -> bool:
    """Whether a process that left a mark is still alive; marks of dead ones are removed."""
    alive = False
    for mark in (WORK / "live").glob("[0-9]*"):
        if is_alive(int(mark.name)):
            alive = True
        else:
            mark.unlink(missing_ok=True)
    return alive


@contextlib.contextmanager
def lock(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold `.work/NAME.lock` across processes; yields whether it was got (always, if `wait`)."""
    WORK.mkdir(exist_ok=True)
    with open(WORK / f"{name}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def record(key: str, facts: dict[str, Any]) -> None:
    """Keep the circumstances of a finished training run, by its content key."""
    write_json(_record_path(key), facts)


def recorded(key: str) -> dict[str, Any]:
    """The circumstances of a run, or {} where it was not made in this workspace."""
    path = _record_path(key)
    return read_json(path) if path.exists() else {}


def circumstances(seconds: float, machine: dict[str, str]) -> dict[str, Any]:
    """What `record` keeps: wall seconds, end time, machine fingerprint, git commit and dirtiness.

    And of a GPU its peak memory and the samples of `gauges`.
    """
    when = {"seconds": round(seconds, 2), "finished": time.time()}
    sampled = {"gauges": gauges.samples()} if gauges.samples() else {}
    return {**when, "machine": machine, **gpu_memory(), **sampled, **code_version()}


def gpu_memory() -> dict[str, float]:
    """Peak memory that this process's tensors took on the CUDA device, in MiB; empty where it used none."""
    import torch

    if not torch.cuda.is_initialized():
        return {}
    return {"gpu_memory_peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1)}


def workspace() -> str:
    """A random name of this workspace, made at first use: tells its runs from others' on a shared server."""
    path = WORK / "workspace"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:16])
    return path.read_text()


def code_version() -> dict[str, Any]:
    """Git commit and whether tracked files differ from it; empty outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _record_path(key: str) -> Path:
    return WORK / "record" / f"{key[:32]}.json"


def _start_follower() -> None:
    """Start `python -m pipeline track --follow` unless one runs, it is switched off, or MLflow is absent."""
    if os.environ.get(SWITCH) == "0" or importlib.util.find_spec("mlflow") is None:
        return
    with lock("follower", wait=False) as free:
        if not free:
            return
    with open(WORK / "track.log", "a") as log:
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "track", "--follow"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def is_alive(pid: int) -> bool:
    """Whether a process with this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
