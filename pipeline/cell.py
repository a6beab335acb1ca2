"""One training run, from parameters to a trained model: what the train stage and the studies share."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline import adversaries, models, perturbation
from pipeline.adversaries import Adversary
from pipeline.adversaries.profiles import resolve
from pipeline.ascent import Inner
from pipeline.data.store import load_meta, load_pixels, load_split
from pipeline.files import digest, digest_code, digest_file, read_json, write_json
from pipeline.machine import fingerprint
from pipeline.models.weights import load_weights, save_weights
from pipeline.parallel import ALONE, World
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream, seeded_globals
from pipeline.training.loop import Progress, Trainer
from pipeline.training.selection import Scores

if TYPE_CHECKING:
    from pipeline.params import Method, Params

# The code a training run's numbers depend on; dvc.yaml names the same under `deps` of `train`.
TRAINING_CODE = (
    "pipeline/adversaries",
    "pipeline/ascent.py",
    "pipeline/cell.py",
    "pipeline/data/__init__.py",
    "pipeline/data/store.py",
    "pipeline/distribution.py",
    "pipeline/files.py",
    "pipeline/losses.py",
    "pipeline/machine.py",
    "pipeline/models",
    "pipeline/parallel/world.py",
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
    def name(self) -> str:
        """What messages call it."""
        return f"{self.method} seed {self.seed}"

    @property
    def data_folder(self) -> Path:
        """Where `prepare` put the data set."""
        return Path("data") / self.params.data.name

    @property
    def settings(self) -> "Method":
        """The method's parameters, every switch resolved."""
        return resolve(self.method, self.params.method(self.method))

    def description(self) -> dict[str, Any]:
        """Resolved parameters, data hash and code hash: what the content key is made of."""
        p, meta = self.params, load_meta(self.data_folder)
        return {
            "method": self.method,
            "seed": self.seed,
            "data": {"name": p.data.name} | {key: meta[key] for key in ("title", "sha256") if key in meta},
            "threat": p.threat.model_dump() | self._set_code(),
            "model": p.model.model_dump(),
            "train": p.train.model_dump(exclude={"checkpoint_seconds", "stall_seconds"}),
            "method_params": self.settings.model_dump(by_alias=True),
            "code": digest_code(Path(), *TRAINING_CODE),
        }

    def _set_code(self) -> dict[str, str]:
        """What makes a user's own perturbation set: the hash of its file."""
        file = perturbation.source(self.params.threat.set)
        return {} if file is None else {"code": digest_file(file)}

    def fingerprint(self, world: World = ALONE) -> str:
        """The description, the machine and how many processes train: equal fingerprints mean equal bits."""
        return digest([self.description(), fingerprint(self.params.runtime), world.size])

    def build(self, device: torch.device) -> tuple[nn.Module, Adversary, PerturbationSet]:
        """Freshly initialised classifier and adversary, each from its own stream, and the set."""
        meta = load_meta(self.data_folder)
        channels, size, _ = meta["shape"]
        perturbations = perturbation.build(self.params.threat.set, self.params.threat.eps)
        inner = Inner(self.params.train.inner_batch_norm, self.params.train.precision)
        model = models.classifier(self.params.model, meta, self.seed)
        with seeded_globals(Stream.of(self.seed, "initialisation", "adversary")):
            adversary = adversaries.build(self.method, self.settings, perturbations, channels, size, inner)
        return model.to(device), adversary.to(device), perturbations

    def train(
        self,
        device: torch.device,
        state_path: Path,
        on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
        world: World = ALONE,
    ) -> tuple[Progress, nn.Module, Adversary]:
        """Train, resuming from `state_path` if this very run was interrupted, together with the processes of `world`.

        The model returned is that of the last epoch, averaged where `train.ema` says so.
        """
        model, adversary, perturbations = self.build(device)
        trainer = Trainer(
            model,
            adversary,
            perturbations,
            self.params.train,
            self.seed,
            state_path,
            self.fingerprint(world),
            on_epoch,
            self.name,
            world,
        )
        progress = trainer.run(
            load_pixels(self.data_folder, "train", device), load_split(self.data_folder, "validation", device)
        )
        return progress, trainer.evaluated, adversary

    def trained(self, device: torch.device, work: Path, run: Path | None = None) -> tuple[Scores, nn.Module, Adversary]:
        """The best validation scores, the selected model and its adversary, for studies that keep no runs.

        What was trained before with the same fingerprint is read back from a folder of `work`, so that
        another way of measuring does not train again; a training that was interrupted there is continued.
        `run`: the folder of a finished run; where this very cell made it, it is read instead.
        """
        folder = work / self.fingerprint()[:32]
        weights, own, best = (folder / name for name in ("model.safetensors", "adversary.safetensors", "best.json"))
        name = models.architecture(self.params.model)
        if run is not None and self._made(run):
            scores = read_json(run / "metrics.json")
            return Scores(scores["val_natural"], scores["val_robust"]), *self._read(run, device)
        if best.exists():
            return Scores(**read_json(best)), *self._read(folder, device)
        progress, model, adversary = self.train(device, folder / "state.pt")
        model.load_state_dict(progress.selected)
        save_weights(weights, progress.selected, name)
        save_weights(own, adversary.state_dict())
        write_json(best, asdict(progress.best))
        (folder / "state.pt").unlink()
        return progress.best, model, adversary

    def _made(self, run: Path) -> bool:
        """Whether a run folder is there, and of this cell."""
        described = run / "run.json"
        return described.exists() and read_json(described)["key"] == digest(self.description())

    def _read(self, folder: Path, device: torch.device) -> tuple[nn.Module, Adversary]:
        """The model and the adversary whose weights lie in a folder."""
        model, adversary, _ = self.build(device)
        load_weights(folder / "model.safetensors", model, models.architecture(self.params.model))
        load_weights(folder / "adversary.safetensors", adversary)
        return model, adversary
