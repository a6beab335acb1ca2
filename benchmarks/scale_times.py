"""How long every cell of a preset takes on so many devices: arithmetic, a speed for it, and a model of sharing out.

One training step on W devices takes

    t(W) = fixed + compute / (W e^log2(W)) + what of the all-reduce is not hidden,    fixed + compute = t(1):

fixed: what does not shrink with a device's part of the batch; e: what is left of the efficiency each time that
part is halved. The all-reduce is a ring, in which every device sends 2 (W - 1) / W times the gradients over the
slowest link between two neighbours (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters
of workstations: no algorithm sends less). DDP sends while the backward pass of the training step goes on (Li et
al. 2020, PyTorch distributed), so what fits into that pass is hidden; the last bucket never is.

Evaluations share out their batches without an exchange, and so does the validation within a training.
"""

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.cost import SOURCES, SUSTAINED, Estimate
from benchmarks.scale_speeds import Speeds, Step
from pipeline import models
from pipeline.errors import UserError
from pipeline.models import count_parameters

if TYPE_CHECKING:
    from pipeline.params import Params

GRADIENT_BYTES = 4  # float32, also where the networks compute in bfloat16
# The studies whose arithmetic is estimated, with what leaves nothing of them.
STUDIES: dict[str, dict[str, Any]] = {
    "ablation": {"seeds": []},
    "degeneracy": {"seeds": []},
    "search": {"trials": 0},
    "landscape": {"images": 0},
}


@dataclass(frozen=True)
class Assumptions:
    """What was not measured. `fixed`, `efficiency`: shares, used where steps at two batch sizes were not measured.

    `within`, `between`: bytes a second of the links inside a node of `node` devices and of the network. `bucket`:
    bytes of DDP's last bucket at most. `cell`: seconds that every cell takes beside its arithmetic.
    """

    fixed: float = 0.05
    efficiency: float = 0.95
    within: float = 300e9
    between: float = 25e9
    bucket: float = 25 * 2**20
    node: int = 8
    cell: float = 20.0

    def all_reduce(self, size: float, devices: int) -> float:
        """Seconds of a ring all-reduce of `size` bytes; its slowest link is the network's once it leaves a node."""
        return 2 * (devices - 1) / devices * size / (self.within if devices <= self.node else self.between)

    def step(self, one: Step, backward: float, size: float, devices: int) -> float:
        """t(devices); `backward`: the share of `compute` that hides the exchange of `size` bytes of gradients."""
        known = one.fixed is not None
        fixed = one.fixed if known else self.fixed * one.whole
        compute = (one.whole - fixed) / (devices * (1.0 if known else self.efficiency ** math.log2(devices)))
        last = self.all_reduce(min(size, self.bucket), devices)
        return fixed + compute + max(last, self.all_reduce(size, devices) - backward * compute)


class Times:
    """Seconds of the cells of the preset `p`, whose data are colour images (else `UserError`)."""

    def __init__(self, p: "Params", speeds: Speeds, assumed: Assumptions) -> None:
        if p.data.name not in SOURCES:
            raise UserError(f"{p.preset}: no estimate for {p.data.called}; it is made for a CPU")
        self.p, self.speeds, self.assumed = p, speeds, assumed
        self.estimate = Estimate(p)
        self.slower = SUSTAINED["fp32"] / speeds.attacking()  # attacks, than the estimate takes them to be
        self._known: dict[tuple[str, str, int], float] = {}

    def cell(self, name: str, devices: int) -> float:
        """Seconds of a cell on so many devices. Only `train` and `attack` cells are shared out."""
        kind, _, item = name.partition("@")
        key = kind, item.rpartition("-")[0], devices
        if key not in self._known:
            self._known[key] = self._work(*key)
        return self.assumed.cell + self._known[key]

    def _work(self, kind: str, method: str, devices: int) -> float:
        """Seconds of a cell's arithmetic; 0 where there is no estimate of it, and next to none."""
        if kind == "train":
            return self.training(method, devices)
        if kind == "attack":
            attacks = sum(map(self.estimate.attack, self.p.evaluation.attacks.values()))
            return self.slower * attacks * shared(self.estimate.images[1], self.p.evaluation.batch_size, devices)
        if kind == "probe":
            return self.slower * self._probed()
        if kind == "transfer":
            return self.slower * self.estimate.transfer()
        return self._study(kind) if kind in STUDIES else 0.0

    def training(self, method: str, devices: int) -> float:
        """Seconds of a training of the preset."""
        p, train = self.p, self.estimate.images[0]
        batches = train / p.train.batch_size * self.step(method, devices)
        validating = self.estimate.training(method, 1) - train * self._image(method) / SUSTAINED[p.train.precision]
        parts = shared(p.data.split.validation, p.train.selection.batch_size, devices)
        return p.train.epochs * (batches + parts * self._slower(method) * validating)

    def step(self, method: str, devices: int) -> float:
        """Seconds of one training step."""
        return self.assumed.step(self._alone(method), self._backward(method), self._gradients(method), devices)

    def _alone(self, method: str) -> Step:
        return self.speeds.step(self.p, method, self._image(method))

    def _slower(self, method: str) -> float:
        """How many times slower a training step is than the estimate takes it to be."""
        assumed = self.p.train.batch_size * self._image(method) / SUSTAINED[self.p.train.precision]
        return self._alone(method).whole / assumed

    def _image(self, method: str) -> float:
        """Operations of a training step an image: the estimate without validation."""
        split = self.p.data.split.model_copy(update={"validation": 0})
        bare = self._changed("data", split=split)
        return bare.training(method, 1) * SUSTAINED[self.p.train.precision] / bare.images[0]

    def _backward(self, method: str) -> float:
        """The share of a step that is the backward pass through the networks that learn."""
        learning = self.estimate.adversary(method).training_evaluations * self.estimate.forward
        return 2 * (learning + sum(self.estimate.networks[method])) / self._image(method)

    def _gradients(self, method: str) -> float:
        """Bytes of the gradients of classifier, generator and encoder."""
        return GRADIENT_BYTES * (self._classifier + count_parameters(self.estimate.adversary(method)))

    @cached_property
    def _classifier(self) -> int:
        shape, classes, *_ = SOURCES[self.p.data.name]
        with torch.device("meta"):
            return count_parameters(models.classifier(self.p.model, {"shape": shape, "classes": range(classes)}))

    def _probed(self) -> float:
        """Seconds of the health checks of one model, as assumed; every part of AutoAttack counts as the whole."""
        health, estimate = self.p.health, self.estimate
        base = self.p.evaluation.attacks[health.base]
        walks = sum(health.steps) + base.steps * (sum(health.restarts) + len(health.radii))
        whole = walks / base.steps * estimate.attack(base) + sum(map(estimate.attack, health.attacks.values()))
        return whole * health.images / estimate.images[1]

    def _study(self, name: str) -> float:
        """Seconds of a study: its trainings at ADT_EXP's pace, the rest at that of attacks."""
        whole = self.estimate.studies() - self._changed(name, **STUDIES[name]).studies()
        if name == "landscape":
            return self.slower * whole
        judged = 0.0
        if hasattr(getattr(self.p, name), "attacks"):
            judged = self.estimate.studies() - self._changed(name, attacks=[]).studies()
        return self._slower("adt_exp") * (whole - judged) + self.slower * judged

    def _changed(self, section: str, **values: Any) -> Estimate:
        """The estimate with other values in one section of the parameters."""
        other = copy.copy(self.estimate)
        other.p = self.p.model_copy(update={section: getattr(self.p, section).model_copy(update=values)})
        return other


def shared(images: int, batch: int, devices: int) -> float:
    """The greatest share of one device where whole batches are dealt out; 0 where there is nothing to deal."""
    batches = math.ceil(images / batch)
    return math.ceil(batches / devices) / batches if batches else 0.0
