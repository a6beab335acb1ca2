"""One training run, from parameters to a trained model: what the train stage and the studies share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline import adversaries, models, perturbation
from pipeline.adversaries import Adversary
from pipeline.data.store import load_meta, load_split
from pipeline.files import digest, digest_code
from pipeline.machine import fingerprint
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream, seeded_globals
from pipeline.training.loop import Progress, Trainer

if TYPE_CHECKING:
    from pipeline.params import Params

# The code a training run's numbers depend on; dvc.yaml names the same under `deps` of `train`.
TRAINING_CODE = (
    "pipeline/adversaries",
    "pipeline/ascent.py",
    "pipeline/cell.py",
    "pipeline/data/__init__.py",
    "pipeline/data/store.py",
    "pipeline/files.py",
    "pipeline/losses.py",
    "pipeline/machine.py",
    "pipeline/models",
    "pipeline/perturbation.py",
    "pipeline/seeding.py",
    "pipeline/training",
)


@dataclass(frozen=True)
class Cell:
    """One (method, seed) of the matrix, with everything that decides its result."""

    params: "Params"
    method: str
    seed: int

    @property
    def data_folder(self) -> Path:
        """Where `prepare` put the data set."""
        return Path("data") / self.params.data.name

    def description(self) -> dict[str, Any]:
        """Resolved parameters, data hash and code hash: what the content key is made of."""
        p = self.params
        return {
            "method": self.method,
            "seed": self.seed,
            "data": {"name": p.data.name, "sha256": load_meta(self.data_folder)["sha256"]},
            "threat": p.threat.model_dump(),
            "model": p.model.model_dump(),
            "train": p.train.model_dump(exclude={"checkpoint_seconds"}),
            "method_params": p.method(self.method).model_dump(),
            "code": digest_code(Path(), *TRAINING_CODE),
        }

    def fingerprint(self) -> str:
        """The description and the machine: equal fingerprints mean equal bits."""
        return digest([self.description(), fingerprint(self.params.runtime)])

    def build(self, device: torch.device) -> tuple[nn.Module, Adversary, PerturbationSet]:
        """Freshly initialised classifier and adversary, each from its own stream, and the set."""
        meta = load_meta(self.data_folder)
        channels, size, _ = meta["shape"]
        perturbations = perturbation.build(self.params.threat.set, self.params.threat.eps)
        model = models.classifier(self.params.model, meta, self.seed)
        with seeded_globals(Stream.of(self.seed, "initialisation", "adversary")):
            adversary = adversaries.build(self.method, self.params.method(self.method), perturbations, channels, size)
        return model.to(device), adversary.to(device), perturbations

    def train(
        self,
        device: torch.device,
        state_path: Path,
        on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    ) -> tuple[Progress, nn.Module, Adversary]:
        """Train, resuming from `state_path` if this very run was interrupted; the model ends at its last epoch."""
        model, adversary, perturbations = self.build(device)
        trainer = Trainer(
            model,
            adversary,
            perturbations,
            self.params.train,
            self.seed,
            state_path,
            self.fingerprint(),
            on_epoch,
        )
        progress = trainer.run(
            load_split(self.data_folder, "train", device), load_split(self.data_folder, "validation", device)
        )
        return progress, model, adversary
