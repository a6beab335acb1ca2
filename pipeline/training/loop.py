"""The one training loop.

Every batch: the adversary makes samples, the classifier takes a step on their
cross-entropy plus the adversary's penalty, and both optimisers step from the same
backward pass. The loop can be killed at any instant; run again, it continues from
its last saved epoch and ends with the same bits, because all randomness is a
function of (seed, purpose, epoch, example).
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline import seeding
from pipeline.adversaries import Adversary
from pipeline.data.store import Split
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream
from pipeline.training.checkpoint import load_state, save_state
from pipeline.training.schedules import rate
from pipeline.training.selection import Scores, validate

if TYPE_CHECKING:
    from pipeline.params import Train

HISTORY_COLUMNS = [
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "entropy",
    "code_length",
    "hinge_active",
    "val_natural",
    "val_robust",
]


@dataclass
class Progress:
    """Where a training run stands: what is saved, resumed and finally returned."""

    history: list[dict[str, Any]] = field(default_factory=list)
    selected_epoch: int = 0
    best: Scores = field(default_factory=lambda: Scores(-1.0, -1.0))
    selected: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, epoch: int, scores: Scores, model: nn.Module) -> None:
        """Keep this epoch's weights if its robust, then natural, accuracy is the best so far."""
        if (scores.robust, scores.natural) > (self.best.robust, self.best.natural):
            self.best, self.selected_epoch = scores, epoch
            self.selected = copy.deepcopy(model.state_dict())


class Trainer:
    """Trains `model` against `adversary` on `train`, selecting on `validation`.

    `state_path` and `fingerprint` name the resumable state; `on_epoch` receives the
    history after every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        adversary: Adversary,
        perturbations: PerturbationSet,
        settings: "Train",
        seed: int,
        state_path: Path,
        fingerprint: str,
        on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    ) -> None:
        self.model, self.adversary, self.perturbations = model, adversary, perturbations
        self.settings, self.seed = settings, seed
        self.state_path, self.fingerprint, self.on_epoch = state_path, fingerprint, on_epoch
        self.progress = Progress()
        o = settings.optimizer
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay, foreach=True
        )
        self.adversary_optimizer = adversary.optimizer()
        self._saved_at = time.monotonic()

    def run(self, train: Split, validation: Split) -> Progress:
        """Train to the last epoch, resuming where a killed run left its state."""
        self._resume()
        for epoch in range(len(self.progress.history) + 1, self.settings.epochs + 1):
            row = self._epoch(epoch, train)
            scores = validate(
                self.model,
                validation.x,
                validation.y,
                self.settings.selection,
                self.perturbations,
                Stream.of(self.seed, "validation"),
                self.settings.selection.batch_size,
            )
            self.progress.consider(epoch, scores, self.model)
            self.progress.history.append(row | {"val_natural": scores.natural, "val_robust": scores.robust})
            self._save_state()
            self.on_epoch(self.progress.history)
        return self.progress

    def _epoch(self, epoch: int, train: Split) -> dict[str, Any]:
        """One pass over the training set; returns its history row."""
        order = Stream.of(self.seed, "order", epoch).permutation(len(train.x)).to(train.x.device)
        noise = Stream.of(self.seed, "adversary", epoch)
        batches = order.split(self.settings.batch_size)
        # A last batch of one image would give batch norm nothing to normalise by.
        batches = batches[:-1] if len(batches[-1]) == 1 and len(batches) > 1 else batches
        totals: dict[str, float] = {}
        self.adversary.train()
        for number, index in enumerate(batches):
            progress = (epoch - 1 + number / len(batches)) / self.settings.epochs
            lr = rate(self.settings.schedule, self.settings.optimizer.lr, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            for name, value in self._step(train.x[index], train.y[index], noise.at(index)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        row = {name: total / len(batches) for name, total in totals.items()}
        weights_finite = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        if not (weights_finite and all(map(math.isfinite, row.values()))):
            raise FloatingPointError(f"epoch {epoch}: training diverged (weights finite: {weights_finite}): {row}")
        return {"epoch": epoch, "lr": lr} | row

    def _step(self, x: Tensor, labels: Tensor, noise: seeding.Noise) -> dict[str, Tensor]:
        """One batch: samples, one backward pass, one step of every optimiser."""
        samples = self.adversary(self.model, x, labels, noise)
        optimizers = [o for o in (self.optimizer, self.adversary_optimizer) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.model.train()
        logits = self.model(samples.x)
        loss = cross_entropy(logits, labels)
        (loss if samples.penalty is None else loss + samples.penalty).backward()
        for optimizer in optimizers:
            optimizer.step()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"train_loss": loss.detach(), "train_accuracy": accuracy} | samples.stats

    def _save_state(self) -> None:
        """Save after an epoch, but no more often than `checkpoint_seconds`: it only bounds what a kill costs."""
        done = len(self.progress.history) == self.settings.epochs
        if not done and time.monotonic() - self._saved_at < self.settings.checkpoint_seconds:
            return
        save_state(
            self.state_path,
            self.fingerprint,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "adversary": self.adversary.state_dict(),
                "adversary_optimizer": self.adversary_optimizer and self.adversary_optimizer.state_dict(),
                "progress": asdict(self.progress),
                "random": seeding.capture(),
            },
        )
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        state = load_state(self.state_path, self.fingerprint)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.adversary.load_state_dict(state["adversary"])
        if self.adversary_optimizer is not None:
            self.adversary_optimizer.load_state_dict(state["adversary_optimizer"])
        saved = state["progress"]
        self.progress = Progress(**saved | {"best": Scores(**saved["best"])})
        seeding.restore(state["random"])
