"""The machine: which device to use, deterministic arithmetic, and a fingerprint of what decides its bits."""

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import UserError

LOCAL_RANK = "LOCAL_RANK"  # set by torchrun in each of its processes

if TYPE_CHECKING:
    from pipeline.params import Runtime


def prepare(runtime: "Runtime") -> torch.device:
    """Fix the thread count, ask torch for deterministic kernels, and return the device to use."""
    torch.set_num_threads(runtime.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as use_deterministic_algorithms(True), which also imports the compiler: a second a process.
    torch.set_deterministic_debug_mode("error")
    # Which would also fill every new tensor with NaN, nearly a tenth of a step on the digits; no kernel here
    # reads memory it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _keep_freed_memory()
    device = resolve(runtime.device)
    if device.type == "cuda" and LOCAL_RANK in os.environ:
        device = _own_gpu(int(os.environ[LOCAL_RANK]))
    return device


def _own_gpu(place: int) -> torch.device:
    """The GPU of the `place`-th process that torchrun has started on this machine."""
    if place >= torch.cuda.device_count():
        raise UserError(f"torchrun: process {place} of this machine has no GPU; there are {torch.cuda.device_count()}")
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def resolve(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise UserError(f"params.yaml: runtime.device: no {name} device here; available: auto, {there}")
    return torch.device(name)


def fingerprint(runtime: "Runtime") -> dict[str, str]:
    """What two machines must share for equal bits: versions, processor, instruction set, device, threads."""
    device = resolve(runtime.device)
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(runtime.threads),
    }


def _keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system after every batch.

    Mapping fresh pages for each batch's activations took a third of an ADT_EXP step on
    the digits; other C libraries have no `mallopt` and keep their own policy.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        for option in (trim_threshold, mmap_threshold):
            libc.mallopt(option, 2**30)


@cache
def processor() -> str:
    """Vendor, family, model and cache size from /proc/cpuinfo; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    facts = dict(line.split(":", 1) for line in first if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    wanted = ("model name", "cpu family", "model", "cache size")
    return ", ".join(facts[name] for name in wanted if name in facts)
