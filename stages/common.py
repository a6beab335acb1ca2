"""What every stage does at its edges: one line for a user's mistake, and no orphan processes."""

import argparse
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import live
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Params

WORK = live.WORK


def run_stage(main: Callable[[], None], shared: bool = False) -> None:
    """Run a stage's `main`; a `UserError` becomes one line on stderr and exit status 2.

    `shared`: several processes of torchrun's may run it together.
    """
    _die_with_parent()
    try:
        if not shared and os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ:
            raise UserError("torchrun: only stages.train and stages.attack share their work; start this one alone")
        # Of several processes that share a stage the first one alone leaves word of itself.
        with live.presence() if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def cell_of_command_line(p: "Params", purpose: str | None) -> tuple[str, int]:
    """The cell of the matrix that `--method` and `--seed` name."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--method", required=True, choices=p.matrix.methods)
    parser.add_argument("--seed", required=True, type=int, choices=p.matrix.seeds)
    arguments = parser.parse_args()
    return arguments.method, arguments.seed


def run_folder(method: str, seed: int) -> Path:
    """Where the train stage of a cell writes."""
    return Path("runs") / method / f"seed-{seed}"


def verdict_file(method: str, seed: int) -> Path:
    """Where the attack stage of a cell writes."""
    return Path("verdicts") / method / f"seed-{seed}.npz"


def probe_file(method: str, seed: int) -> Path:
    """Where the probe stage of a cell writes."""
    return Path("probes") / method / f"seed-{seed}.json"


def _die_with_parent() -> None:
    """On Linux, be terminated when the process that started this one dies (a killed `dvc`)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
