"""Training steps on a GPU: the released ones as their users would run them, and ours in each number format."""

import contextlib
import copy
import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks import timing, training
from benchmarks.reference import Reference
from benchmarks.training import Network, Step
from pipeline import distribution
from pipeline.models.resnet import ResNet18
from pipeline.models.wide_resnet import WideResNet
from pipeline.seeding import Stream, seeded_globals

METHODS = ("adt_exp", "at_pgd", "adt_exp_am", "adt_imp_am")
# Values of images that one pass of ADT_EXP's search takes in the variant "bf16 wide": all samples of a batch.
WIDE = 2**22


@dataclass(frozen=True)
class Subject:
    """A classifier of both sides: ours, and theirs by the method of `Reference` that builds it."""

    network: Network
    theirs: str

    def at(self, batch: int) -> Network:
        """Ours at another batch size."""
        return dataclasses.replace(self.network, batch=batch)


SUBJECTS = {
    "wrn-28-10": Subject(Network(lambda _: WideResNet(28, 10, 3, 10), 3, 32, 128, METHODS, 256), "wide_resnet"),
    "resnet18": Subject(Network(lambda _: ResNet18(3, 10), 3, 32, 128, METHODS, 256), "resnet18"),
}
SMOKE = {
    "tiny": Subject(Network(lambda _: ResNet18(3, 10, None, (4, 4, 4, 4)), 3, 32, 4, METHODS, 4), "resnet18"),
}


@contextlib.contextmanager
def as_installed(tf32: bool = True) -> Iterator[None]:
    """PyTorch's own settings inside the block: kernels need not be deterministic, and convolutions may use TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_deterministic_debug_mode()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_deterministic_debug_mode(before[1])


@contextlib.contextmanager
def passes_of(values: int) -> Iterator[None]:
    """Inside the block a pass of ADT_EXP's search takes so many values of images."""
    before, distribution._PASS = distribution._PASS, values
    try:
        yield
    finally:
        distribution._PASS = before


def contenders(
    method: str, subject: Subject, batch: int, device: torch.device, reference: Reference | None
) -> dict[str, Step]:
    """Whole training steps by name; those of the released code only with a clone of it."""
    network, steps = subject.at(batch), {}
    if reference is not None:
        with seeded_globals(Stream.of(0, "benchmark classifier")):
            theirs = getattr(reference, subject.theirs)()
        for name, tf32 in (("released", True), ("released fp32", False)):
            step = training.released(method, network, copy.deepcopy(theirs), reference)
            steps[name] = _within(lambda tf32=tf32: as_installed(tf32), step)
    model = classifier(network, device)
    for name in ("fp32", "bf16"):
        steps[name] = training.ours(method, network, copy.deepcopy(model), name, device)
    if method == "adt_exp":
        wide = training.ours(method, network, copy.deepcopy(model), "bf16", device)
        steps["bf16 wide"] = _within(lambda: passes_of(WIDE), wide)
    return steps


def classifier(network: Network, device: torch.device) -> nn.Module:
    """A freshly initialised classifier whose batch norms have seen a batch."""
    with seeded_globals(Stream.of(0, "benchmark classifier")):
        model = network.build(None).to(device)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(network.examples(device).x)
    for norm in norms:
        norm.momentum = 0.1
    return model


def measure(
    method: str, subject: Subject, batch: int, device: torch.device, reference: Reference | None, rounds: int
) -> dict[str, Any]:
    """Of each contender: milliseconds, images a second, peak memory, useful flops a second; ratios to the released."""
    steps = contenders(method, subject, batch, device, reference)
    useful = training.arithmetic(
        training.ours(method, subject.at(batch), classifier(subject.at(batch), device), "fp32", device)
    )
    seconds = timing.interleaved(steps, rounds, device, warmup=1)
    row: dict[str, Any] = {"useful_flops": useful}
    for name, step in steps.items():
        median = statistics.median(seconds[name])
        row[name] = {"ms": 1e3 * median, "images_per_second": batch / median, "memory_mib": peak_memory(step, device)}
        if not name.startswith("released"):
            row[name]["flops_per_second"] = useful / median
            if reference is not None:
                row[name]["times_faster"] = timing.ratio(seconds["released"], seconds[name])
    return row


def peak_memory(step: Step, device: torch.device) -> float | None:
    """Peak of what tensors take on a CUDA device during a step, what lies there anyway included, MiB."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) / 2**20


def _within(block: Any, step: Step) -> Step:
    """The step inside a context that `block` makes."""

    def inside() -> None:
        with block():
            step()

    return inside
