"""How many training steps a second one process makes beside others: a helper of `benchmarks.campaign run`.

    python -m benchmarks.campaign_speed job.json METHOD SEED SECONDS FOLDER

Warms up, writes FOLDER/PID.ready, waits for FOLDER/go, counts steps for so many seconds and prints steps a second.
"""

import os
import sys
import time
from pathlib import Path

from benchmarks import timing
from pipeline import bare, machine
from pipeline.cell import Cell
from pipeline.data.store import load_pixels
from pipeline.files import write_text
from pipeline.seeding import Stream
from pipeline.training.loop import Trainer

WARM_UP = 3
PATIENCE = 120.0  # seconds to wait for the others


def main(job: str, method: str, seed: str, seconds: str, folder: str) -> None:
    """Measure and print."""
    cell = Cell(bare.load(Path(job)), method, int(seed))
    settings = cell.params.train
    device = machine.prepare(cell.params.runtime)
    trainer = Trainer(*cell.build(device), settings, cell.seed, Path("never-written"), "")
    trainer.adversary.train()
    train = load_pixels(cell.data_folder, "train", device)
    order = Stream.of(cell.seed, "order", 1).permutation(len(train.x)).to(device)
    batches = [part for part in order.split(settings.batch_size) if len(part) == settings.batch_size] or [order]
    for number in range(WARM_UP):
        trainer.step(1, train, batches[number % len(batches)])
    timing.synchronize(device)
    write_text(Path(folder) / f"{os.getpid()}.ready", "")
    given_up = time.monotonic() + PATIENCE
    while not (Path(folder) / "go").exists() and time.monotonic() < given_up:
        time.sleep(0.01)
    started, steps = time.monotonic(), 0
    while time.monotonic() - started < float(seconds):
        trainer.step(1, train, batches[steps % len(batches)])
        steps += 1
    timing.synchronize(device)
    print(steps / (time.monotonic() - started))


if __name__ == "__main__":
    main(*sys.argv[1:])
