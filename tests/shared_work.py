"""Trainings and attacks that processes share; as a program one of them, of which rank 0 writes what came out."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from small_settings import METHODS, train_settings

from pipeline import adversaries, parallel, params
from pipeline.attacks import suite
from pipeline.data.store import Split
from pipeline.models.small import SmallCNN
from pipeline.parallel import ALONE, World
from pipeline.perturbation import Linf
from pipeline.seeding import Noise, Stream, seeded_globals
from pipeline.training.loop import Trainer
from pipeline.verdicts import Column

CPU = torch.device("cpu")
DEVICES = 2
EPOCHS = 7  # of three batches: 12, 12 and 6 of the 31 images, one of which stays out of every epoch
# Settings under which something of the whole batch enters every sample or loss.
TRAININGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "at_pgd": ("at_pgd", {}, {}),
    "at_pgd, batch norm training inside": ("at_pgd", {}, {"inner_batch_norm": "train"}),
    "adt_exp": ("adt_exp", {"outer_samples": 2}, {}),
    "adt_exp, batch norm training inside": ("adt_exp", {}, {"inner_batch_norm": "train"}),
    "adt_exp_am": ("adt_exp_am", {"gradient_input": "raw"}, {"ema": 0.9}),
    "adt_imp_am": ("adt_imp_am", {"gradient_input": "raw", "tau": 0.92}, {}),
    "trades": ("trades", {}, {}),
}


def examples(count: int, seed: int, device: torch.device = CPU) -> Split:
    """Random images of 6x6 in three classes."""
    rows = Stream.of(seed, "images").at(torch.arange(count, device=device))
    return Split(rows.uniform(1, 6, 6).double(), (rows.uniform(1, draw=1)[:, 0] * 3).long(), rows.index)


def train(name: str, world: World = ALONE, device: torch.device = CPU, batch_norm: str = "replica") -> dict[str, Any]:
    """History, weights of both players and statistics after one of `TRAININGS`; every process gets the same."""
    method, changes, loop = TRAININGS[name]
    settings: params.Method = METHODS[method].model_copy(update=changes)
    with seeded_globals(Stream.of(0, "both players")):
        model = SmallCNN(1, 6, 3, [4, 6], unshuffle=1).double()
        adversary = adversaries.build(method, settings, Linf(0.2), 1, 6).double()
    model, adversary = model.to(device), adversary.to(device)
    loop = train_settings(epochs=EPOCHS, devices=DEVICES, batch_norm=batch_norm, **loop)
    adversary.inner = type(adversary.inner)(loop.inner_batch_norm)
    with tempfile.TemporaryDirectory() as folder:
        # Whoever does not lead would fail here if it wrote.
        state = Path(folder if world.leads else "/dev/null") / "state.pt"
        trainer = Trainer(model, adversary, Linf(0.2), loop, 0, state, name, lambda _: _refuse(world), world=world)
        progress = trainer.run(examples(31, 0, device), examples(15, 1, device))
    weights = {f"model.{key}": value for key, value in trainer.evaluated.state_dict().items()}
    weights |= {f"adversary.{key}": value for key, value in adversary.state_dict().items()}
    return {"history": progress.history, "selected": progress.selected_epoch, "weights": weights}


def attacked(world: World = ALONE) -> dict[str, Column]:
    """The columns of several kinds of attack on a fixed classifier, in float32, in batches of 4 of 15 images."""
    attacks = {
        "pgd": params.Attack(family="pgd", steps=3, step_size=0.1, restarts=2, rule="any"),
        "fea": params.Attack(family="fea", steps=2, step_size=0.1, targets=2),
        "autoattack": params.Attack(family="autoattack", steps=5, queries=10, parts=["apgd-ce", "square"]),
    }
    evaluation = params.Evaluation(batch_size=4, seed=0, precision="fp32", devices=1, attacks=attacks)
    with seeded_globals(Stream.of(0, "classifier")):
        model = SmallCNN(1, 6, 3, [4, 6], unshuffle=1).eval()
    test = examples(15, 2)
    test = Split(test.x.float(), test.y, 100 + test.index)
    natural = suite.column("natural", evaluation, model, test, Linf(0.2), world=world)
    found = {name: suite.column(name, evaluation, model, test, Linf(0.2), natural, world) for name in attacks}
    return {"natural": natural, **found}


def double_noise() -> None:
    """Random numbers as float64, of the same bits."""
    single = Noise.uniform
    Noise.uniform = lambda self, *shape, draw=0: single(self, *shape, draw=draw).double()


def _refuse(world: World) -> None:
    assert world.leads, "only rank 0 reports an epoch"


def main() -> None:
    """Train everything in this process's world."""
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    on_gpus = sys.argv[2] == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else CPU
    with parallel.joined("a test", device, 120) as world:
        columns = None if on_gpus else attacked(world)
        double_noise()
        batch_norm = "synchronised" if on_gpus else "replica"
        found = {name: train(name, world, device, batch_norm) for name in TRAININGS}
        alike = world.gather({name: digest(result) for name, result in found.items()})
        if world.leads:
            torch.save({"columns": columns, "found": found, "alike": alike}, sys.argv[1])


def digest(result: dict[str, Any]) -> list[float]:
    """Enough of a result to tell two apart."""
    return [float(value.double().sum()) for value in result["weights"].values()] + [result["selected"]]


if __name__ == "__main__":
    main()
