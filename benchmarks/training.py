"""How fast our training steps are: `python -m benchmarks.training --reference DIR`.

Whole training steps (samples, loss, backward pass, optimisers) of the released code as written
and of ours at the same mathematics: the same network and weights, batch, T and k, gradients
accumulated as released. Both sides run in one process with the same number of threads and the
same memory allocator settings, and take turns; a ratio is the median over the rounds. The
released code draws its own noise with torch.randn, ours computes its own.

Networks: the digits preset's (1x8x8, batch 64), a small one for 1x28x28 (batch 64), ResNet-18 for
3x32x32. The released amortised steps need three channels and 32x32 images, so they run on
ResNet-18 alone. Percentages: our useful arithmetic over the measured peak in the same format, the
faster of a square matrix product and a wide convolution.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import command, timing
from benchmarks.reference import Reference, pgd_loss
from pipeline import adversaries, bare, machine
from pipeline.ascent import Inner
from pipeline.data.store import Split
from pipeline.files import write_json
from pipeline.models.resnet import ResNet18
from pipeline.models.small import SmallCNN
from pipeline.perturbation import Linf
from pipeline.seeding import Stream, seeded_globals
from pipeline.training.loop import Trainer

EPS = 8 / 255
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], object]


def settings(method: str, width: int) -> bare.Settings:
    """A method with the released hyper-parameters and switches, its generator `width` wide."""
    amortized = {"as": "released", "width": width, "generator_lr": 2e-4}
    values: dict[str, dict[str, Any]] = {
        "at_pgd": {"as": "released", "steps": 7, "step_size": 2 / 255},
        "adt_exp": {"as": "released", "lam": 0.01, "steps": 7, "samples": 5, "inner_lr": 0.3},
        "adt_exp_am": amortized | {"lam": 0.01},
        "adt_imp_am": amortized | {"lam": 1.0, "latent": 64, "encoder_width": 32},
    }
    return bare.method(method, values[method])


@dataclass(frozen=True)
class Network:
    """A classifier to time steps on, and what it classifies."""

    build: Callable[[Reference | None], nn.Module]
    channels: int
    size: int
    batch: int
    methods: tuple[str, ...]
    width: int = 16

    def examples(self, device: torch.device) -> Split:
        """One batch of random images and labels."""
        rows = Stream.of(0, "benchmark images").at(torch.arange(self.batch))
        x = rows.uniform(self.channels, self.size, self.size)
        y = (rows.uniform(1, draw=1)[:, 0] * 10).long()
        return Split(x.to(device), y.to(device), torch.arange(self.batch, device=device))


NETWORKS = {
    "digits": Network(lambda _: SmallCNN(1, 8, 10, [16, 32], 1), 1, 8, 64, ("at_pgd", "adt_exp")),
    "28x28": Network(lambda _: SmallCNN(1, 28, 10, [16, 32, 32], 2), 1, 28, 64, ("at_pgd", "adt_exp")),
    "resnet18": Network(
        lambda _: ResNet18(3, 10), 3, 32, 16, ("at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am"), width=64
    ),
}


def released(method: str, network: Network, model: nn.Module, reference: Reference) -> Step:
    """The released step as written, with the released optimisers."""
    data = network.examples(reference.device)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        sgd.step()

    if method == "at_pgd":
        return lambda: update(pgd_loss(model, data.x, data.y, sgd, EPS, 7, 2 / 255))
    if method == "adt_exp":
        return lambda: update(reference.explicit_loss(model, data.x, data.y, sgd, 0.3, EPS, 7, 5, 0.01))
    latent = 64 if method == "adt_imp_am" else 0
    generator = reference.generator(9 + bool(latent), 3 if latent else 6, network.width, latent).train()
    adam = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    if method == "adt_exp_am":
        return lambda: reference.amortized_step(model, data.x, data.y, sgd, generator, adam, EPS, 0.01)
    encoder = reference.encoder(latent).train()
    other = torch.optim.Adam(encoder.parameters(), lr=2e-4)
    return lambda: reference.implicit_step(
        model, data.x, data.y, sgd, generator, adam, encoder, other, EPS, 1.0, 0.9, latent
    )


@dataclass(frozen=True)
class OurStep:
    """One step of our training loop, always on the same batch."""

    trainer: Trainer
    data: Split

    def __call__(self) -> None:
        """Samples, loss, backward pass, optimisers."""
        self.trainer.step(1, self.data, self.data.index)


def ours(method: str, network: Network, model: nn.Module, precision: str, device: torch.device) -> OurStep:
    """The same step by our training loop."""
    inner = Inner(precision=precision)
    with seeded_globals(Stream.of(0, "benchmark adversary")):
        adversary = adversaries.build(
            method, settings(method, network.width), Linf(EPS), network.channels, network.size, inner
        )
    trainer = Trainer(model, adversary.to(device), Linf(EPS), loop(network.batch, precision), 0, Path(), "")
    adversary.train()
    return OurStep(trainer, network.examples(device))


def loop(batch: int, precision: str) -> bare.Settings:
    """The released loop: SGD at 0.1, no augmentation (the released side has none here, either)."""
    return bare.Settings(
        epochs=1,
        batch_size=batch,
        optimizer={"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4},
        schedule={"name": "constant"},
        label_smoothing=0.0,
        ema=0.0,
        augmentation={"crop": 0, "padding": "zero", "flip": False},
        inner_batch_norm="eval",
        precision=precision,
        selection={"steps": 1, "step_size": EPS, "batch_size": batch},
        patience=0,
        devices=1,
        batch_norm="replica",
        stall_seconds=60.0,
        checkpoint_seconds=0,
    )


def arithmetic(step: OurStep) -> int:
    """Useful floating-point operations of a step: products of convolutions and linear layers, forward and backward."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        forward = 2 * output.numel() * layer.weight[0].numel()
        # Backward: once more for the input, and once more for the weights where they learn.
        total += forward * (1 + torch.is_grad_enabled() * (1 + layer.weight.requires_grad))

    layers = [*step.trainer.model.modules(), *step.trainer.adversary.modules()]
    hooks = [m.register_forward_hook(count) for m in layers if isinstance(m, nn.Conv2d | nn.Linear)]
    step()
    for hook in hooks:
        hook.remove()
    return total


def measure(
    method: str, network: Network, reference: Reference, precisions: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Milliseconds of the released step and of ours in each precision, and how many times faster ours is."""
    with seeded_globals(Stream.of(0, "benchmark classifier")):
        model = network.build(reference).to(reference.device)
    mine = {p: ours(method, network, copy.deepcopy(model), p, reference.device) for p in precisions}
    theirs = {"released": released(method, network, copy.deepcopy(model), reference)}
    seconds = timing.interleaved(theirs | mine, rounds, reference.device)
    row: dict[str, Any] = {"released_ms": 1e3 * statistics.median(seconds["released"])}
    for precision in precisions:
        median = statistics.median(seconds[precision])
        row[precision] = {
            "ms": 1e3 * median,
            "times_faster": timing.ratio(seconds["released"], seconds[precision]),
            "flops_per_second": arithmetic(mine[precision]) / median,
        }
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    command.run(_run, _parser(), arguments)


def _run(parsed: argparse.Namespace) -> None:
    device = machine.prepare(bare.Settings(device=parsed.device, threads=parsed.threads))
    reference = Reference(parsed.reference, device)
    facts = timing.conditions(device) | {"reference": reference.commit() or "not a git clone", "rounds": parsed.rounds}
    measured = {name: timing.peaks(PRECISIONS[name], device) for name in parsed.precisions}
    peaks = {name: max(speeds.values()) for name, speeds in measured.items()}
    print("\n".join(f"{name:12} {value}" for name, value in facts.items()))
    print("\n".join(f"{f'peak {name}':12} {value / 1e9:.0f} Gflop/s" for name, value in peaks.items()), end="\n\n")
    print(f"{'network':10}{'method':12}{'released':>12}", *(f"{name:>30}" for name in parsed.precisions))
    rows = []
    for name in parsed.networks:
        for method in NETWORKS[name].methods:
            row = measure(method, NETWORKS[name], reference, parsed.precisions, parsed.rounds)
            rows.append({"network": name, "method": method, "batch": NETWORKS[name].batch} | row)
            print(f"{name:10}{method:12}{row['released_ms']:9.1f} ms", *_cells(row, peaks), flush=True)
    if parsed.output:
        write_json(parsed.output, {"conditions": facts, "peak_flops_per_second": measured, "rows": rows})


def _cells(row: dict[str, Any], peaks: dict[str, float]) -> Iterator[str]:
    for name, peak in peaks.items():
        mine, faster = row[name], row[name]["times_faster"]
        share = f"{mine['flops_per_second'] / peak:.0%}"
        spread = f"[{faster['least']:.2f}, {faster['greatest']:.2f}]"
        yield f"{mine['ms']:8.1f} ms {faster['median']:5.2f}x {spread:>13} {share:>4}".rjust(30)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("training", __doc__)
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a clone of the released code")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on both sides (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender (default 9)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="PRECISION")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    return parser


if __name__ == "__main__":
    main()
