"""Seconds of training steps and validations in a process alone or beside others: a helper of `benchmarks.scale`.

    python -m benchmarks.scale_steps ROUNDS FOLDER

For every method of params.yaml, in turns of several: a step on a whole batch, one on half a batch, a validation.
Writes FOLDER/PID.ready, waits for FOLDER/go, and prints the medians as JSON.
"""

import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import timing
from benchmarks.timing import Step
from pipeline import machine, params
from pipeline.cell import Cell
from pipeline.data.store import load_pixels, load_split
from pipeline.files import write_text
from pipeline.seeding import Stream
from pipeline.training.loop import Trainer
from pipeline.training.selection import validate

if TYPE_CHECKING:
    from pipeline.params import Params

PATIENCE = 120.0  # seconds to wait for the others
TURN = 5  # times in a row, as in a training


def main(rounds: str, folder: str) -> None:
    """Measure and print."""
    p = params.load()
    device = machine.prepare(p.runtime)
    steps = {
        f"{method} {name}": step for method in p.matrix.methods for name, step in _steps(p, method, device).items()
    }
    write_text(Path(folder) / f"{os.getpid()}.ready", "")
    given_up = time.monotonic() + PATIENCE
    while not (Path(folder) / "go").exists() and time.monotonic() < given_up:
        time.sleep(0.01)
    gc.freeze()  # what is there stays, so that collecting between turns takes no time
    seconds = timing.interleaved({name: _in_a_row(step) for name, step in steps.items()}, int(rounds), device)
    print(json.dumps({name: statistics.median(turns) / TURN for name, turns in seconds.items()}))


def _in_a_row(step: Step) -> Step:
    return lambda: [step() for _ in range(TURN)]


def _steps(p: "Params", method: str, device: torch.device) -> dict[str, Step]:
    cell, settings = Cell(p, method, p.matrix.seeds[0]), p.train
    trainer = Trainer(*cell.build(device), settings, cell.seed, Path("never-written"), "")
    trainer.adversary.train()
    train, validation = (
        load_pixels(cell.data_folder, "train", device),
        load_split(cell.data_folder, "validation", device),
    )
    batch = Stream.of(cell.seed, "order", 1).permutation(len(train.x)).to(device)[: settings.batch_size]
    chosen = settings.selection
    return {
        "whole": lambda: trainer.step(1, train, batch),
        "half": lambda: trainer.step(1, train, batch[: len(batch) // 2]),
        "validation": lambda: validate(
            trainer.evaluated,
            validation.x,
            validation.y,
            chosen,
            trainer.perturbations,
            Stream.of(cell.seed, "validation"),
            chosen.batch_size,
        ),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
