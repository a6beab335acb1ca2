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
from pipeline.ascent import Inner
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.models.lowering import is_wide
from pipeline.parallel import ALONE, World
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream
from pipeline.training.augmentation import augment
from pipeline.training.checkpoint import load_state, save_state
from pipeline.training.game import Game, even, shared_out
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
    history after every epoch; `name` is what messages call the run. `world`: the processes that train together,
    each on its part of every batch; all of them end with the same progress, and rank 0 alone writes.
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
        world: World = ALONE,
    ) -> None:
        self.model, self.adversary, self.perturbations = model, adversary, perturbations
        self.settings, self.seed, self.name = settings, seed, name
        self.state_path, self.fingerprint, self.on_epoch = state_path, fingerprint, on_epoch
        self.progress = Progress()
        self.world = adversary.world = world
        self.place = "the start"
        for network in (model, adversary):
            if is_wide(network):
                network.to(memory_format=torch.channels_last)
        self.game = shared_out(Game(model, adversary, settings), settings, world)
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
            self.world.at(f"validation after epoch {epoch}")
            self.world.align(self.evaluated, self.model, self.adversary)
            scores = self._validate(validation)
            self.progress.consider(epoch, scores, self.evaluated, self.adversary.selects_by)
            row |= self._diagnose(validation) | {"val_natural": scores.natural, "val_robust": scores.robust}
            self.progress.history.append(row)
            self.progress.batch, self.progress.totals = 0, {}
            self._save_state()
            if self.world.leads:
                self.on_epoch(self.progress.history)
        return self.progress

    def _finished(self) -> bool:
        """All epochs done, or `patience` of them since the best one."""
        done, patience = len(self.progress.history), self.settings.patience
        return done == self.settings.epochs or 0 < patience <= done - self.progress.selected_epoch

    def _epoch(self, epoch: int, train: Split) -> dict[str, Any]:
        """One pass over the training set, from the batch where it stands; returns its history row."""
        order = Stream.of(self.seed, "order", epoch).permutation(len(train.x)).to(train.x.device)
        batches = even(order.split(self.settings.batch_size), self.settings.devices)
        totals = self.progress.totals
        self.adversary.train()
        for number in range(self.progress.batch, len(batches)):
            progress = (epoch - 1 + number / len(batches)) / self.settings.epochs
            lr = rate(self.settings.schedule, self.settings.optimizer.lr, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.place = f"epoch {epoch}, batch {number + 1} of {len(batches)}"
            self.world.at(self.place)
            stats = self._bounded_step(epoch, train, batches[number])
            self._check_finite(stats, self.place)
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value
            self.progress.batch = number + 1
            if self.progress.batch < len(batches):
                self._save_state()
        return {"epoch": epoch, "lr": lr} | {name: total / len(batches) for name, total in totals.items()}

    def _bounded_step(self, epoch: int, train: Split, index: Tensor) -> dict[str, float]:
        """`step`; memory that runs out ends the training with a `UserError` that names a batch size."""
        key = "train.batch_size"
        if self.world.size > 1:
            with memory.told(key, len(self.world.share(index)), "lower it, or raise train.devices"):
                return self.step(epoch, train, index)

        devices = self.settings.devices

        def step(count: int) -> dict[str, float]:
            return self.step(epoch, train, index[:count])

        return memory.bounded(lambda: step(len(index)), key, len(index), step, 2 * devices, devices)

    def step(self, epoch: int, train: Split, index: Tensor) -> dict[str, float]:
        """One batch, the examples `index` of `train`: samples, one backward pass, one step of every optimiser.

        Returns the statistics of the whole batch, whichever part of it this process takes.
        """
        own = self.world.share(index)
        x, labels = train.images(own), train.y[own]
        x = augment(x, self.settings.augmentation, Stream.of(self.seed, "augmentation", epoch).at(own))
        optimizers = [o for o in (self.optimizer, self.adversary_optimizer) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, stats = self.game(x, labels, Stream.of(self.seed, "adversary", epoch).at(own))
        self.world.at(f"{self.place}, backward pass")
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        means = self.world.mean(torch.stack([value.to(loss.dtype) for value in stats.values()]))
        return dict(zip(stats, means.tolist(), strict=True))

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
                self.world,
            )

        size = min(self.settings.selection.batch_size, len(validation.x))
        key = "train.selection.batch_size"
        if self.world.size > 1:
            with memory.told(key, size, "lower it"):
                return scores(validation)
        return memory.bounded(lambda: scores(validation), key, size, lambda count: scores(validation.head(count)))

    def _diagnose(self, validation: Split) -> dict[str, float]:
        """What the adversary says about its distribution on the first validation images."""
        some = validation.head(_DIAGNOSED)
        return self.adversary.diagnose(self.model, some.x, some.y, Stream.of(self.seed, "diagnosis").at(some.index))

    def _save_state(self) -> None:
        """Save, but no more often than `checkpoint_seconds`, which bounds what a kill costs; at the end always."""
        if not self.world.leads:
            return
        if not self._finished() and time.monotonic() - self._saved_at < self.settings.checkpoint_seconds:
            return
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"progress": asdict(self.progress), "random": seeding.capture()}
        save_state(self.state_path, self.fingerprint, state)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        state = self.world.leading(load_state(self.state_path, self.fingerprint) if self.world.leads else None)
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
