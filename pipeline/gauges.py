"""What the GPU does while a stage runs, sampled by `nvidia-smi`; nothing where there is none."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

# In the names and units of MLflow's own system metrics.
GAUGES = {
    "system/gpu_0_utilization_percentage": "utilization.gpu",
    "system/gpu_0_memory_usage_megabytes": "memory.used",
    "system/gpu_0_power_usage_watts": "power.draw",
}
INTERVAL = 10.0  # seconds
MOST = 400  # samples kept; then every other one goes and the interval doubles
Sample = list[float]  # seconds since 1970, then a value a gauge

_samples: list[Sample] = []


@contextlib.contextmanager
def sampling(interval: float = INTERVAL) -> Iterator[None]:
    """Sample this process's GPU inside the block, in a thread; a sampler that fails stays silent and stops."""
    _samples.clear()
    if shutil.which("nvidia-smi") is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_sample, args=(over, interval), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


def samples() -> list[Sample]:
    """What was sampled so far, oldest first."""
    return list(_samples)


def _sample(over: threading.Event, interval: float) -> None:
    while True:
        try:
            values = _read()
        except (OSError, ValueError, subprocess.SubprocessError):  # no driver, or a gauge that this card lacks
            return
        _samples.append([round(time.time(), 3), *values])
        if len(_samples) >= MOST:
            del _samples[1::2]
            interval *= 2
        if over.wait(interval):
            return


def _read() -> list[float]:
    """One value a gauge, of the first visible GPU."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--query-gpu={','.join(GAUGES.values())}", "--format=csv,noheader,nounits", "-i", device]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return [float(value) for value in told.strip().split(",")]
