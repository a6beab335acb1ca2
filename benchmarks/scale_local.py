"""Predictions held against runs on this machine: trainings of the preset digits, one core each and over two.

Measured first, in processes of one thread: steps and validations of every method, alone and beside a second such
process, and what a cell costs beside its steps (DVC, imports, data), from trainings of one epoch. Predicted
from these: the seconds of all trainings (four methods, two seeds) with one and with two cells at once, by the same
rehearsal of the scheduler as the tables; and the seconds of an epoch of one training in one and in two processes, by
the same model of sharing out, the exchange of gradients taken to cost nothing. Then all of it is run, cells by the
scheduler itself and without caches. Two processes on one machine slow each other down: the factor is measured,
and every prediction for two of them is given without it and with it. An error is prediction over measurement less 1.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import scale_runs
from benchmarks.scale_plan import Rehearsal
from benchmarks.scale_runs import EPOCHS, PRESET, SEEDS, SHARED
from benchmarks.scale_speeds import Step
from benchmarks.scale_times import Assumptions, shared
from pipeline import params, slots
from pipeline.data.store import load_meta
from pipeline.errors import UserError
from pipeline.graph import Graph, find_dvc
from pipeline.slots import Slots

Seconds = Mapping[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Held:
    """One prediction and its measurement, in seconds; `slower`: the measured factor for so many processes at once."""

    what: str
    processes: int
    predicted: float
    slower: float
    measured: float


def measure(repeats: int, say: Say) -> dict[str, Any]:
    """Everything above, in a temporary copy of the project, `repeats` (>= 1) times; `say` prints a line.

    Each time is predicted from what was measured just before it, as others may be at work on the same machine.
    Errors are medians. `UserError` where there is one core only, no DVC, or no repository to copy.
    """
    if slots.cores() < 2:
        raise UserError("--measure: needs two cores")
    find_dvc()
    with tempfile.TemporaryDirectory() as folder:
        scale_runs.copy_project(Path(folder))
        with contextlib.chdir(folder):
            scale_runs.use(EPOCHS)
            scale_runs.command("dvc", "repro", "--quiet", "--single-item", "prepare")
            basis, trials = zip(*(trial(say) for _ in range(repeats)), strict=True)
    rows = [_row(helds) for helds in zip(*trials, strict=True)]
    for row in rows:
        say(_said(row))
    return {"preset": PRESET, "epochs": EPOCHS, "repeats": repeats, "basis": list(basis), "predictions": rows}


def trial(say: Say) -> tuple[dict[str, Any], list[Held]]:
    """What is measured first, and every prediction from it held against a run."""
    alone, beside = scale_runs.steps(1), scale_runs.steps(2)
    slower = statistics.median(beside[name] / alone[name] for name in alone)
    begin = start(alone)
    say(f"a second process at once: every step takes {slower:.2f} times as long; a cell takes {begin:.1f} s to begin")
    basis = {"alone_seconds": alone, "beside_seconds": beside, "slowdown": slower, "begin_seconds": begin}
    return basis, list(_predictions(alone, begin, slower))


def _predictions(alone: Seconds, begin: float, slower: float) -> Iterator[Held]:
    methods = params.load().matrix.methods
    lengths = {f"train@{m}-{seed}": begin + EPOCHS * epoch(alone, m) for m in methods for seed in SEEDS}
    graph: Graph = {cell: set() for cell in lengths}
    for jobs in (1, 2):
        plan = Rehearsal(graph, Slots([], jobs), dict.fromkeys(graph, 1), lengths).plan()
        what, factor = f"{len(graph)} trainings, {jobs} at once", slower if jobs > 1 else 1.0
        yield Held(what, jobs, plan.makespan, factor, scale_runs.run(list(graph), jobs))
    for processes in (1, 2):
        what = f"an epoch of {SHARED} in {processes} process" + "es" * (processes > 1)
        factor = slower if processes > 1 else 1.0
        yield Held(what, processes, epoch(alone, SHARED, processes), factor, scale_runs.epoch_seconds(processes))


def epoch(seconds: Seconds, method: str, processes: int = 1) -> float:
    """Seconds of an epoch of a training over so many processes of which each has a core, as the tables would say."""
    p = params.load()
    counts = load_meta(Path("data") / p.data.name)["counts"]
    whole, half = seconds[f"{method} whole"], seconds[f"{method} half"]
    step = Assumptions().step(Step(whole, min(whole, max(0.0, 2 * half - whole))), 0.0, 0.0, processes)
    parts = shared(counts["validation"], p.train.selection.batch_size, processes)
    return counts["train"] / p.train.batch_size * step + parts * seconds[f"{method} validation"]


def start(alone: Seconds) -> float:
    """Seconds that a cell takes beside its epochs: a training of one epoch less that epoch."""
    scale_runs.use(1)
    method = params.load().matrix.methods[0]
    seconds = scale_runs.run([f"train@{method}-{SEEDS[0]}"], 1) - epoch(alone, method)
    scale_runs.use(EPOCHS)
    return seconds


def _row(helds: Sequence[Held]) -> dict[str, Any]:
    """The same prediction of every trial, with the median errors."""
    return {
        "what": helds[0].what,
        "processes": helds[0].processes,
        "predicted_seconds": [held.predicted for held in helds],
        "slowdown": [held.slower for held in helds],
        "measured_seconds": [held.measured for held in helds],
        "error": statistics.median(held.predicted / held.measured for held in helds) - 1,
        "error_with_slowdown": statistics.median(held.slower * held.predicted / held.measured for held in helds) - 1,
    }


def _said(row: Mapping[str, Any]) -> str:
    predicted, measured = (", ".join(f"{s:.2f}" for s in row[f"{kind}_seconds"]) for kind in ("predicted", "measured"))
    corrected = f"; with the slowdown {row['error_with_slowdown']:+.1%}" * (row["processes"] > 1)
    return f"{row['what']}: predicted {predicted} s, measured {measured} s, error {row['error']:+.1%}{corrected}"
