"""How many processes share a job, and starting them: torchrun's agent, one process a GPU or core."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipeline import slots
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Train

# Variables that torchrun sets in each of its processes.
SIZE, RANK = "WORLD_SIZE", "RANK"
_SHUTDOWN_SECONDS = "5"  # between asking processes to end and killing them


def started() -> bool:
    """Whether this process is one of those that torchrun, or `launch`, has started."""
    return SIZE in os.environ and RANK in os.environ


def trainers(train: "Train", device: torch.device, threads: int) -> int:
    """How many processes train together on batches of `train.devices` equal parts.

    Started by torchrun: as many as it started, which must divide `devices`, else `UserError`. Otherwise the largest
    divisor of `devices` for which there are devices; a process then takes several parts. Batch norm is
    synchronised between GPUs alone; elsewhere one process does everything, which is the same.
    """
    joint = train.batch_norm == "replica" or device.type == "cuda"
    if not started():
        most = _there(device, threads) if joint else 1
        return max(n for n in range(1, train.devices + 1) if train.devices % n == 0 and (n == 1 or n <= most))
    size = int(os.environ[SIZE])
    if train.devices % size:
        raise UserError(
            f"params.yaml: train.devices: is {train.devices}, which the {size} processes that torchrun has started"
            f" cannot share evenly; start as many as it says, or change it (--set train.devices={size})"
        )
    if size > 1 and not joint:
        raise UserError(
            "params.yaml: train.batch_norm: synchronised needs GPUs where several processes train; replica, or one"
            " process, which does the same"
        )
    return size


def evaluators(devices: int, device: torch.device, threads: int) -> int:
    """How many processes share out the batches of an evaluation: those of torchrun, else at most `devices`."""
    return int(os.environ[SIZE]) if started() else max(1, min(devices, _there(device, threads)))


def _there(device: torch.device, threads: int) -> int:
    """GPUs that are visible, or cores for `threads` each."""
    return {"cuda": torch.cuda.device_count(), "cpu": slots.cores() // threads}.get(device.type, 1)


def launch(count: int, module: str, arguments: Sequence[str], name: str) -> None:
    """Run `python -m module arguments` in `count` processes of this machine that know of each other.

    Returns when all have ended well. Where one fails all are ended, and so is this process: with status 2 where
    the one said why, else with status 1 and a line that names the rank.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _hush("torch.distributed.elastic")  # what goes wrong is told below, in a line
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_SECONDS)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != 2:
            ended = f"exit status {failure.exitcode}"
            if failure.exitcode < 0:
                ended = f"signal {signal.Signals(-failure.exitcode).name}"
            print(
                f"error: {name}: rank {rank} of {count} (process {failure.pid}) ended with {ended};"
                " run it again to go on from the last checkpoint",
                file=sys.stderr,
            )
        sys.exit(2 if failure.exitcode == 2 else 1)


def _hush(package: str) -> None:
    """Let the loggers of a package, which set their own levels, say nothing."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(package)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
