"""The files of a small workspace as stages leave them, and an MLflow database that has its tables already."""

import contextlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from pipeline import live, presets
from pipeline.files import digest_file, write_csv, write_json, write_text
from pipeline.verdicts import Column, Verdicts

EPOCHS = 3
with contextlib.chdir(Path(__file__).parents[1]):  # where the presets are
    PARAMS = presets.render("smoke", ["matrix.methods=[at_pgd]", "matrix.seeds=[0, 1, 2]"])
NAMES = ("natural", "pgd-3")


@cache
def empty_database() -> bytes:
    """A database with MLflow's tables and nothing in them: making them takes two seconds, once is enough."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def make(database: bool = True) -> None:
    """The parameters above in the current folder, and MLflow's database."""
    Path("params.yaml").write_text(PARAMS)
    if database:
        Path("mlflow.db").write_bytes(empty_database())


def description(seed: int, generation: int = 0) -> dict[str, Any]:
    """What run.json says; another `generation` is another content, as of other parameters."""
    return {
        "key": f"{generation:08x}{seed:056x}",
        "method": "at_pgd",
        "seed": seed,
        "data": {"name": "digits", "sha256": "ab" * 32},
        "threat": {"set": "linf", "eps": 0.2},
        "model": {"name": "small_cnn", "widths": [4], "unshuffle": 1},
        "train": {"epochs": EPOCHS, "optimizer": {"lr": 0.1}, "selection": {"steps": 2}},
        "method_params": {"steps": 2, "step_size": 0.1},
        "code": f"{generation:064x}",
    }


def write_history(folder: Path, epochs: int) -> None:
    rows = [{"epoch": e, "entropy": None, "val_natural": 0.9, "val_robust": e / 10} for e in range(1, epochs + 1)]
    write_csv(folder / "history.csv", rows, ["epoch", "entropy", "val_natural", "val_robust"])


def training(seed: int, epochs: int, pid: int | None = None, generation: int = 0) -> Path:
    """The files of a training under way, in the process `pid` (this one, so alive)."""
    folder = live.WORK / "train" / str(seed)
    write_text(folder / "pid", str(pid or os.getpid()))
    write_json(folder / "run.json", description(seed, generation))
    write_history(folder, epochs)
    return folder


def finished(seed: int, generation: int = 0, epochs: int = EPOCHS) -> Path:
    """The files of a finished training."""
    folder = Path(f"runs/at_pgd/seed-{seed}")
    names = ("gradient_evaluations", "gradient_evaluations_per_example_and_epoch", "classifier_parameters")
    write_json(folder / "run.json", description(seed, generation) | dict.fromkeys(names, 7))
    write_history(folder, epochs)
    (folder / "model.safetensors").write_bytes(f"weights {generation} {seed}".encode())
    write_json(folder / "metrics.json", {"selected_epoch": 2, "val_natural": 0.9, "val_robust": 0.2})
    return folder


def attacked(seed: int, broken: int, checkpoint: str | None = None) -> None:
    """A verdict table of ten examples, of which PGD breaks `broken`."""
    column = Column(np.arange(10) < broken, np.zeros(10, np.float32), np.zeros(10, np.float32))
    natural = Column(np.zeros(10, bool), column.margin, column.norm)
    identity = checkpoint or digest_file(Path(f"runs/at_pgd/seed-{seed}/model.safetensors"))
    columns = dict(zip(NAMES, (natural, column), strict=True))
    table = Verdicts.join(columns, np.zeros(10, np.int64), np.arange(10), identity)
    table.save(Path(f"verdicts/at_pgd/seed-{seed}.npz"))
