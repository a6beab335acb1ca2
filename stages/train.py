"""train: one method with one seed, from data/NAME/ to runs/METHOD/seed-N/.

With `train.devices` above 1 over so many GPUs, or cores, as there are; torchrun may start the processes, too.
"""

import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from pipeline import live, machine, models, parallel
from pipeline.cell import Cell
from pipeline.data.store import load_meta
from pipeline.files import digest, write_csv, write_json, write_text
from pipeline.models import count_parameters
from pipeline.models.weights import save_weights
from pipeline.parallel import ALONE, World
from pipeline.progress import Progress
from pipeline.training.loop import HISTORY_COLUMNS
from stages.common import WORK, cell_of_command_line, run_folder, run_stage

if TYPE_CHECKING:
    from pipeline.params import Params


def main() -> None:
    """Train the cell of the command line with params.yaml."""
    from pipeline import params  # checked by pydantic, which a bare node lacks

    p = params.load()
    method, seed = cell_of_command_line(p, __doc__)
    name, device = f"train {method} seed {seed}", machine.prepare(p.runtime)
    count = parallel.trainers(p.train, device, p.runtime.threads)

    def work(world: World) -> None:
        train(p, method, seed, world)

    parallel.run(work, count, "stages.train", name, device, p.train.stall_seconds)


def train(p: "Params", method: str, seed: int, world: World = ALONE) -> None:
    """Train one cell; rank 0 of `world` writes model, last model, adversary, history and run.json."""
    cell = Cell(p, method, seed)
    device = machine.prepare(p.runtime)
    description = cell.description()
    work = WORK / "train" / cell.fingerprint(world)[:16]
    key, started = digest(description), time.monotonic()
    if not world.leads:
        cell.train(device, work / "state.pt", world=world)
        return
    write_text(work / "pid", str(os.getpid()))
    write_json(work / "run.json", {"key": key, **description})

    with Progress(f"{cell.method} seed {cell.seed}", p.train.epochs) as bar:

        def on_epoch(history: list[dict[str, Any]]) -> None:
            write_csv(work / "history.csv", history, HISTORY_COLUMNS)
            row = history[-1]
            bar.reach(
                len(history),
                f"loss {row['train_loss']:.3f}, validation natural {row['val_natural']:.3f}"
                f" robust {row['val_robust']:.3f}",
            )

        progress, model, adversary = cell.train(device, work / "state.pt", on_epoch, world)

    folder = run_folder(cell.method, cell.seed)
    architecture = models.architecture(p.model)
    save_weights(folder / "model.safetensors", progress.selected, architecture)
    save_weights(folder / "last.safetensors", model.state_dict(), architecture)
    save_weights(folder / "adversary.safetensors", adversary.state_dict())
    write_csv(folder / "history.csv", progress.history, HISTORY_COLUMNS)
    evaluations = adversary.gradient_evaluations + adversary.training_evaluations
    write_json(
        folder / "run.json",
        {
            "key": key,
            **description,
            "gradient_evaluations_per_example_and_epoch": evaluations,
            "gradient_evaluations": evaluations
            * len(progress.history)
            * load_meta(cell.data_folder)["counts"]["train"],
            "classifier_parameters": count_parameters(model),
            "adversary_parameters": count_parameters(adversary),
        },
    )
    write_json(
        folder / "metrics.json",
        {
            "selected_epoch": progress.selected_epoch,
            "val_natural": progress.best.natural,
            "val_robust": progress.best.robust,
        },
    )
    where = machine.fingerprint(p.runtime) | ({"processes": str(world.size)} if world.size > 1 else {})
    live.record(key, live.circumstances(time.monotonic() - started, where))
    shutil.rmtree(work)


if __name__ == "__main__":
    run_stage(main, shared=True)
