"""What cells contend for on one machine: its GPUs, or shares of its cores."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Params

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """What a cell has been given: GPUs by name, or shares of the cores."""

    gpus: tuple[str, ...]
    cores: int

    def environment(self) -> dict[str, str]:
        """The variables that keep a process to its place."""
        return {VISIBLE: ",".join(self.gpus)} if self.gpus else {}


class Slots:
    """The slots of a machine.

    `gpus`: their names as CUDA_VISIBLE_DEVICES has them, one named n times for n cells that share it. `cores`:
    shares of the cores: where there are no GPUs every cell takes them, else the cells that need no device,
    which so run beside the others.
    """

    def __init__(self, gpus: Sequence[str], cores: int) -> None:
        self.gpus, self.cores = Counter(gpus), cores
        self.used: Counter[str] = Counter()
        self.used_cores = 0

    @property
    def size(self) -> int:
        """How many slots there are that cells on devices contend for."""
        return self.gpus.total() or self.cores

    def wanted(self, devices: int) -> int:
        """How many of those slots a cell that asks for `devices` devices takes: at most all there are."""
        return min(devices, len(self.gpus)) if self.gpus else min(max(1, devices), self.cores)

    def take(self, devices: int) -> Place | None:
        """A place for a cell, on GPUs that fewest cells use; `None` where too little is free."""
        wanted = self.wanted(devices)
        on_gpus = wanted if self.gpus else 0
        on_cores = wanted if not self.gpus else int(not wanted)
        free = sorted((gpu for gpu in self.gpus if self.used[gpu] < self.gpus[gpu]), key=self.used.__getitem__)
        if len(free) < on_gpus or self.cores - self.used_cores < on_cores:
            return None
        chosen = free[:on_gpus]
        place = Place(tuple(gpu for gpu in self.gpus if gpu in chosen), on_cores)
        self.used.update(place.gpus)
        self.used_cores += on_cores
        return place

    def give_back(self, place: Place) -> None:
        """Free what `take` gave."""
        self.used.subtract(place.gpus)
        self.used_cores -= place.cores


def of_this_machine(p: "Params", jobs: int | None) -> Slots:
    """The slots here: one a visible GPU, or one a `runtime.threads` cores; `jobs` (>= 1) sets another number.

    More jobs than GPUs share them in turn. Cells that need no device are at most as many at once as cores.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: must be at least 1 (got {jobs})")
    shares = max(1, cores() // p.runtime.threads)
    gpus = _gpus(p)
    if not gpus:
        return Slots([], jobs or shares)
    return Slots([gpus[n % len(gpus)] for n in range(jobs or len(gpus))], min(jobs or shares, shares))


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(p: "Params") -> list[str]:
    """The GPUs to use, by the names that a set CUDA_VISIBLE_DEVICES gives them, else by number."""
    if p.runtime.device == "cpu":
        return []  # and torch is not imported, which takes a second or more
    import torch

    from pipeline import machine

    if machine.resolve(p.runtime.device).type != "cuda":
        return []
    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    return [str(n) for n in range(count)] if named is None else [name.strip() for name in named.split(",")][:count]
