"""What the pipeline reaches on a GPU: `python -m benchmarks.gpu [--reference DIR] [--output FILE]`.

For WRN-28-10 and ResNet-18 at batches of 128 and 64: whole training steps of each method with the released
hyper-parameters (generators 256 wide), PGD-100 on batches of 200 images, and single input gradients.

`released`: the code of the clone, its own networks, with PyTorch's settings as installed: convolutions in TF32
where the card has it, kernels that need not be deterministic. `released fp32`: without TF32. `fp32`, `bf16`: ours
as the pipeline runs it, deterministic, without TF32; wide networks channels last. `bf16 wide`: the search of
ADT_EXP with all samples of the batch in one pass. Contenders take turns in one process; times are medians, a
ratio is that to `released`. Useful arithmetic is what our step needs (convolutions and linear layers); its share
is that of the measured peak of a large bf16 matrix product. Input gradients are timed as the pipeline
calls them, captured as a CUDA graph, and (--compile) compiled, which tells whether that would pay.

What does not fit into --budget is left out, and the table says so. `--smoke`: a tiny network, on any device.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import command, gpu_attacks, gpu_steps, timing
from benchmarks.reference import Reference
from pipeline import bare, machine
from pipeline.errors import UserError, VerdictError
from pipeline.files import write_json
from pipeline.memory import free

BATCHES = (128, 64)
TARGETS = {
    "ADT_EXP step, times the released": 5.0,
    "ADT_EXP step on wrn-28-10, share of the peak": 0.45,
    "PGD-100, times the released": 5.0,
}


@dataclass
class Bench:
    """What is measured on, how long, and what was found so far."""

    device: torch.device
    reference: Reference | None
    rounds: int
    until: float
    subjects: dict[str, gpu_steps.Subject]
    batches: Sequence[int]
    compiled: bool
    pgd: tuple[int, int]  # steps and batch
    steps: list[dict[str, Any]] = field(default_factory=list)
    attacks: list[dict[str, Any]] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self) -> Iterator[str]:
        """Measure, the most telling first; yields the lines to print."""
        for number, batch in enumerate(self.batches):
            yield from self._steps(batch)
            if number == 0:
                yield from self._others(batch)

    def _steps(self, batch: int) -> Iterator[str]:
        for name, subject in self.subjects.items():
            for method in gpu_steps.METHODS:
                if self._is_late(f"{method} on {name} at {batch}"):
                    continue
                row = {"network": name, "method": method, "batch": batch}
                found = self._tried(
                    row,
                    lambda s=subject, m=method: gpu_steps.measure(
                        m, s, batch, self.device, self.reference, self.rounds
                    ),
                )
                if found:
                    self.steps.append(found)
                    yield from _step_lines(found)

    def _others(self, batch: int) -> Iterator[str]:
        steps, images = self.pgd
        for name, subject in self.subjects.items():
            if not self._is_late(f"PGD-{steps} on {name}"):
                row = {"network": name, "steps": steps, "batch": images}
                found = self._tried(
                    row, lambda s=subject: gpu_attacks.pgd(s, self.device, self.reference, steps, images, self.rounds)
                )
                if found:
                    self.attacks.append(found)
                    yield _attack_line(found)
            if not self._is_late(f"input gradient on {name}"):
                found = gpu_attacks.gradients(subject, self.device, batch, self.rounds, self.compiled)
                self.gradients.append({"network": name, "batch": batch, "ms": found})
                shown = ", ".join(f"{k} {v:.3f} ms" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
                yield f"{name:11}input gradient of {batch}: {shown}"

    def _tried(self, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The row with what was measured; None where it fails, which is said, and costs none of the other rows."""
        try:
            return row | measure()
        except (RuntimeError, VerdictError) as error:
            free()
            self.failed.append(f"{', '.join(f'{k} {v}' for k, v in row.items())}: {str(error).splitlines()[0]}")
            print(f"failed: {self.failed[-1]}", flush=True)
            return None

    def _is_late(self, what: str) -> bool:
        late = time.monotonic() >= self.until
        if late:
            self.left_out.append(what)
        return late

    def reached(self, peak: float) -> dict[str, dict[str, float]]:
        """The targets: what was aimed at, and by network what was reached in bf16, the better of its variants."""
        pairs = zip(TARGETS, (self._faster(self.steps), self._share(peak), self._faster(self.attacks)), strict=True)
        return {name: {"target": TARGETS[name], **values} for name, values in pairs}

    def _faster(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for row in rows:
            if row.get("method", "adt_exp") == "adt_exp":
                for cell in _bf16(row):
                    if "times_faster" in cell:
                        key = f"{row['network']} at {row['batch']}"
                        found[key] = max(found.get(key, 0.0), cell["times_faster"]["median"])
        return found

    def _share(self, peak: float) -> dict[str, float]:
        rows = [row for row in self.steps if row["method"] == "adt_exp" and row["network"] != "resnet18"]
        return {
            f"{row['network']} at {row['batch']}": max(cell["flops_per_second"] for cell in _bf16(row)) / peak
            for row in rows
        }


def _bf16(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for name, cell in row.items() if name.startswith("bf16")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    command.run(_run, _parser(), arguments)


def _run(parsed: argparse.Namespace) -> None:
    started = time.monotonic()
    if parsed.budget <= 0 or parsed.rounds < 1:
        raise UserError("--budget and --rounds: more than 0")
    device = machine.prepare(bare.Settings(device=parsed.device, threads=parsed.threads))
    if device.type == "cpu" and not parsed.smoke:
        raise UserError("--device: no GPU here; the full sizes take hours on a CPU (--smoke tries everything out)")
    reference = Reference(parsed.reference, device) if parsed.reference else None
    told = {"commit": parsed.commit} if parsed.commit else {}
    facts = (
        timing.conditions(device)
        | told
        | {
            "numpy": np.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
            "reference": (reference.commit() or "not a git clone") if reference else "none: no ratios",
            "rounds": parsed.rounds,
        }
    )
    print("\n".join(f"{name:12} {value}" for name, value in facts.items()), flush=True)
    peaks = {name: timing.peaks(dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    for name, speeds in peaks.items():
        print(f"{f'peak {name}':12} {speeds['product'] / 1e12:.2f} Tflop/s in a matrix product")
    bench = Bench(
        device,
        reference,
        parsed.rounds,
        started + 60 * parsed.budget,
        gpu_steps.SMOKE if parsed.smoke else {name: gpu_steps.SUBJECTS[name] for name in parsed.networks},
        (4,) if parsed.smoke else parsed.batches,
        parsed.compile,
        (3, 4) if parsed.smoke else (100, gpu_attacks.RELEASED_BATCH),
    )
    try:
        for line in bench.run():
            print(line, flush=True)
            if parsed.output:  # what is measured is kept, whatever ends the program
                write_json(parsed.output, _content(bench, facts, peaks))
    finally:
        for what in bench.left_out:
            print(f"left out, for --budget {parsed.budget:g}: {what}")
    if parsed.smoke:
        print("smoke: the networks of the two sides differ and are tiny, so the numbers mean nothing")
    for name, values in bench.reached(peaks["bf16"]["product"]).items():
        reached = ", ".join(f"{key} {value:.2f}" for key, value in values.items() if key != "target")
        print(f"target {values['target']:g}: {name}: {reached or 'not measured'}")
    if parsed.output:
        write_json(parsed.output, _content(bench, facts, peaks))


def _content(bench: Bench, facts: dict[str, Any], peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "conditions": facts,
        "peak_flops_per_second": peaks,
        "targets": bench.reached(peaks["bf16"]["product"]),
        "steps": bench.steps,
        "attacks": bench.attacks,
        "input_gradients": bench.gradients,
        "left_out": bench.left_out,
        "failed": bench.failed,
    }


def _step_lines(row: dict[str, Any]) -> Iterator[str]:
    for name, cell in row.items():
        if not isinstance(cell, dict):
            continue
        faster = "{median:6.2f}x".format(**cell["times_faster"]) if "times_faster" in cell else " " * 7
        speed = f"{cell['flops_per_second'] / 1e12:7.2f} Tflop/s" if "flops_per_second" in cell else " " * 15
        memory = "" if cell["memory_mib"] is None else f"{cell['memory_mib']:9.0f} MiB"
        place = f"{row['network']:11}{row['method']:12}{row['batch']:4}"
        yield f"{place} {name:14}{cell['ms']:10.2f} ms{cell['images_per_second']:10.0f}/s {speed} {faster}{memory}"


def _attack_line(row: dict[str, Any]) -> str:
    cells = []
    for name, cell in row.items():
        if isinstance(cell, dict):
            faster = " {median:.2f}x".format(**cell["times_faster"]) if "times_faster" in cell else ""
            cells.append(f"{name} {cell['ms_per_image']:.3f} ms an image{faster}")
    return f"{row['network']:11}PGD-{row['steps']}: {', '.join(cells)}"


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("gpu", __doc__)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a clone of the released code, for ratios")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--budget", type=float, default=9.0, help="minutes after which nothing new begins (default 9)")
    parser.add_argument("--networks", nargs="+", choices=gpu_steps.SUBJECTS, default=list(gpu_steps.SUBJECTS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="batch sizes (default 128 64)")
    parser.add_argument("--compile", action="store_true", help="time a compiled network, too (a minute each)")
    parser.add_argument("--commit", metavar="HASH", help="of this code, where there is no repository to ask")
    parser.add_argument("--smoke", action="store_true", help="a tiny network: does everything run?")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    return parser


if __name__ == "__main__":
    main()
