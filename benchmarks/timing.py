"""Trustworthy timings: contenders take turns in one process, and medians of the turns are compared."""

import gc
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.machine import processor

Step = Callable[[], object]


def interleaved(contenders: Mapping[str, Step], rounds: int, device: torch.device, warmup: int = 2) -> dict[str, list]:
    """Seconds of every turn: each round runs every contender once, so that a change of the machine's speed hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        for name, step in contenders.items():
            gc.collect()
            synchronize(device)
            started = time.perf_counter()
            step()
            synchronize(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(reference: list[float], ours: list[float]) -> dict[str, float]:
    """How many times faster `ours` is: median, least and greatest ratio of the rounds."""
    ratios = [theirs / mine for theirs, mine in zip(reference, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def peaks(dtype: torch.dtype, device: torch.device, rounds: int = 7) -> dict[str, float]:
    """Floating-point operations a second of a square matrix product and of a wide 3x3 convolution, medians.

    A matrix product is the usual measure of a GPU. CPU builds of torch may use a slower library for it
    than for convolutions, which then seem to exceed it.
    """
    gpu = device.type == "cuda"
    size, batch = (8192, 512) if gpu else (2048, 8)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, 256, 16, 16, device=device).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        turns = interleaved({"product": lambda: a @ b, "convolution": lambda: conv(x)}, rounds, device)
    operations = {"product": 2 * size**3, "convolution": 2 * batch * 16 * 16 * 9 * 256 * 256}
    return {name: operations[name] / statistics.median(seconds) for name, seconds in turns.items()}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def conditions(device: torch.device) -> dict[str, Any]:
    """What timings depend on: the machine, the versions, the thread count, and this repository's commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "instructions": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None,
        "amx": torch.cpu._is_amx_tile_supported() if device.type == "cpu" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    """This repository's commit, marked where the code measured is not the one committed."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None or not git("rev-parse", "HEAD"):
        return "unknown: no repository here"
    return git("rev-parse", "HEAD") + (
        " with changes" if git("status", "--porcelain", "--", "pipeline", "benchmarks", ":!benchmarks/results") else ""
    )
