"""A program whose work may take several processes."""

import sys
from collections.abc import Callable

import torch

from pipeline.parallel.launch import launch, started
from pipeline.parallel.world import World, joined


def run(
    work: Callable[[World], None],
    count: int,
    module: str,
    name: str,
    device: torch.device,
    stall: float | None = None,
) -> None:
    """Do `work` in the world of this process, once in each of `count` processes.

    Where torchrun has not started them, they are: as `python -m module` with this program's arguments.
    `name`, `device` and `stall` as in `joined`.
    """
    if count > 1 and not started():
        launch(count, module, sys.argv[1:], name)
        return
    with joined(name, device, stall) as world:
        work(world)
