"""The one training loop.

Every batch: the adversary makes samples, the classifier takes a step on the loss that the
adversary defines on them plus its penalty, and both optimisers step from the same
backward pass. The loop can be killed at any instant; run again, it continues from
its last saved batch and ends with the same bits, because all randomness is a
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline import memory, seeding
from pipeline.adversaries import Adversary
from pipeline.adversaries.base import repeat
from pipeline.ascent import Inner, autocast
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.models.lowering import is_wide
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream
from pipeline.training.augmentation import augment
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
    "diversity",
    "val_natural",
    "val_robust",
]


_DIAGNOSED = 64  # validation images that the adversary describes itself on, once an epoch


class Diverged(UserError):
    """Loss or parameters are no longer finite; the message names method, epoch and batch."""


@dataclass
class Progress:
    """Where a training run stands: what is saved, resumed and finally returned.

    `batch` and `totals`: batches done of the epoch after those in `history`, and the sums of
    their statistics.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    batch: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    selected_epoch: int = 0
    best: Scores = field(default_factory=lambda: Scores(-1.0, -1.0))
    selected: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, epoch: int, scores: Scores, model: nn.Module, by: str) -> None:
        """Keep this epoch's weights if its accuracy called `by`, then the other one, is the best so far."""
        if scores.rank(by) > self.best.rank(by):
            self.best, self.selected_epoch = scores, epoch
            self.selected = copy.deepcopy(model.state_dict())


class Trainer:
    """Trains `model` against `adversary` on `train`, selecting on `validation`.

    `state_path` and `fingerprint` name the resumable state; `on_epoch` receives the
    history after every epoch; `name` is what messages call the run.
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
        name: str = "training",
    ) -> None:
        self.model, self.adversary, self.perturbations = model, adversary, perturbations
        self.settings, self.seed, self.name = settings, seed, name
        self.state_path, self.fingerprint, self.on_epoch = state_path, fingerprint, on_epoch
        self.progress = Progress()
        for network in (model, adversary):
            if is_wide(network):
                network.to(memory_format=torch.channels_last)
        o = settings.optimizer
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay, foreach=True
        )
        self.adversary_optimizer = adversary.optimizer()
        self.average = None
        if settings.ema:
            blend = get_ema_multi_avg_fn(settings.ema)
            self.average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
        self._saved_at = time.monotonic()

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept: the averaged one if there is an average."""
        return self.model if self.average is None else self.average.module

    def run(self, train: Split, validation: Split) -> Progress:
        """Train to the last epoch, resuming where a killed run left its state."""
        self._resume()
        while not self._finished():
            epoch = len(self.progress.history) + 1
            row = self._epoch(epoch, train)
            scores = self._validate(validation)
            self.progress.consider(epoch, scores, self.evaluated, self.adversary.selects_by)
            row |= self._diagnose(validation) | {"val_natural": scores.natural, "val_robust": scores.robust}
            self.progress.history.append(row)
            self.progress.batch, self.progress.totals = 0, {}
            self._save_state()
            self.on_epoch(self.progress.history)
        return self.progress

    def _finished(self) -> bool:
        """All epochs done, or `patience` of them since the best one."""
        done, patience = len(self.progress.history), self.settings.patience
        return done == self.settings.epochs or 0 < patience <= done - self.progress.selected_epoch

    def _epoch(self, epoch: int, train: Split) -> dict[str, Any]:
        """One pass over the training set, from the batch where it stands; returns its history row."""
        order = Stream.of(self.seed, "order", epoch).permutation(len(train.x)).to(train.x.device)
        batches = order.split(self.settings.batch_size)
        # A last batch of one image would give batch norm nothing to normalise by.
        batches = batches[:-1] if len(batches[-1]) == 1 and len(batches) > 1 else batches
        totals = self.progress.totals
        self.adversary.train()
        for number in range(self.progress.batch, len(batches)):
            progress = (epoch - 1 + number / len(batches)) / self.settings.epochs
            lr = rate(self.settings.schedule, self.settings.optimizer.lr, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            stats = self._bounded_step(epoch, train, batches[number])
            self._check_finite(stats, f"epoch {epoch}, batch {number + 1} of {len(batches)}")
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value
            self.progress.batch = number + 1
            if self.progress.batch < len(batches):
                self._save_state()
        return {"epoch": epoch, "lr": lr} | {name: total / len(batches) for name, total in totals.items()}

    def _bounded_step(self, epoch: int, train: Split, index: Tensor) -> dict[str, float]:
        """`step`; memory that runs out ends the training with a `UserError` that names a batch size."""

        def step(count: int) -> dict[str, float]:
            return self.step(epoch, train, index[:count])

        return memory.bounded(lambda: step(len(index)), "train.batch_size", len(index), step, least=2)

    def step(self, epoch: int, train: Split, index: Tensor) -> dict[str, float]:
        """One batch, the examples `index` of `train`: samples, one backward pass, one step of every optimiser."""
        x, labels = train.images(index), train.y[index]
        x = augment(x, self.settings.augmentation, Stream.of(self.seed, "augmentation", epoch).at(index))
        samples = self.adversary(self.model, x, labels, Stream.of(self.seed, "adversary", epoch).at(index))
        optimizers = [o for o in (self.optimizer, self.adversary_optimizer) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.model.train()
        with autocast(x.device, self.settings.precision):
            loss, logits = self.adversary.loss(self.model, samples, x, labels, self.settings.label_smoothing)
        (loss if samples.penalty is None else loss + samples.penalty).backward()
        for optimizer in optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        accuracy = (logits.argmax(1) == repeat(labels, logits)).float().mean()
        stats = {"train_loss": loss.detach(), "train_accuracy": accuracy} | samples.stats
        return {name: float(value) for name, value in stats.items()}

    def _check_finite(self, stats: dict[str, float], place: str) -> None:
        """Raise `Diverged` unless statistics and parameters are finite; the state saved before stays."""
        parameters = [*self.model.parameters(), *self.adversary.parameters()]
        values = stats | {"norm of the parameters": float(torch.nn.utils.get_total_norm(parameters))}
        wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise Diverged(f"{self.name}: training diverged at {place}: {', '.join(wrong)}")

    def _validate(self, validation: Split) -> Scores:
        def scores(part: Split) -> Scores:
            return validate(
                self.evaluated,
                part.x,
                part.y,
                self.settings.selection,
                self.perturbations,
                Stream.of(self.seed, "validation"),
                self.settings.selection.batch_size,
                Inner(precision=self.settings.precision),
            )

        size = min(self.settings.selection.batch_size, len(validation.x))
        key = "train.selection.batch_size"
        return memory.bounded(lambda: scores(validation), key, size, lambda count: scores(validation.head(count)))

    def _diagnose(self, validation: Split) -> dict[str, float]:
        """What the adversary says about its distribution on the first validation images."""
        some = validation.head(_DIAGNOSED)
        return self.adversary.diagnose(self.model, some.x, some.y, Stream.of(self.seed, "diagnosis").at(some.index))

    def _save_state(self) -> None:
        """Save, but no more often than `checkpoint_seconds`, which bounds what a kill costs; at the end always."""
        if not self._finished() and time.monotonic() - self._saved_at < self.settings.checkpoint_seconds:
            return
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"progress": asdict(self.progress), "random": seeding.capture()}
        save_state(self.state_path, self.fingerprint, state)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        state = load_state(self.state_path, self.fingerprint)
        if state is None:
            return
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        saved = state["progress"]
        self.progress = Progress(**saved | {"best": Scores(**saved["best"])})
        seeding.restore(state["random"])

    def _parts(self) -> dict[str, Any]:
        """Everything with a state of its own."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "adversary": self.adversary,
            "adversary_optimizer": self.adversary_optimizer,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}
