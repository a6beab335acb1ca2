"""The processes that share one training or one evaluation, and what they tell each other."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.parallel.launch import started
from pipeline.parallel.watch import SILENT_SECONDS, Watch

_PATIENCE = 10.0  # seconds for torchrun's agent to end this process after another one died


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`. With one process everything below is the identity.

    All processes call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1
    watch: Watch | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch: the rank-th of `size` equal parts, in order."""
        return batch.chunk(self.size)[self.rank]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each process's `values`, detached; on the device they are on."""
        values = values.detach()
        if self.size == 1:
            return values
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def gather(self, thing: Any) -> list[Any]:
        """Each process's `thing`, by rank."""
        things = [thing] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(things, thing)
        return things

    def leading(self, thing: Any) -> Any:
        """The `thing` of rank 0; what the others pass does not matter."""
        things = [thing]
        if self.size > 1:
            torch.distributed.broadcast_object_list(things, device=torch.device("cpu"))
        return things[0]

    def align(self, *modules: nn.Module) -> None:
        """Give every process the buffers of rank 0, such as running statistics; parameters are equal anyway."""
        for buffer in (buffer for module in modules for buffer in module.buffers()):
            if self.size > 1:
                torch.distributed.broadcast(buffer, 0)

    def at(self, place: str) -> None:
        """This process has got to `place`."""
        if self.watch is not None:
            self.watch.at(place)


ALONE = World()


@contextlib.contextmanager
def joined(name: str, device: torch.device, stall: float | None = None) -> Iterator[World]:
    """The world that torchrun, or `launch`, has put this process in; without one of them a world of one.

    What goes wrong inside is told by the process that notices first, the others end in silence: a `UserError`;
    and a process that died or hangs, with its name. `stall` as in `Watch`.
    """
    if not started():
        yield ALONE
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # All on this machine: the loopback needs neither a resolvable host name nor a network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store, rank, size = next(torch.distributed.rendezvous("env://"))
    # torchrun may keep its store when it starts the processes again, with addresses of dead ones in it.
    store = torch.distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # Later than the watch, which knows whom to blame.
    timeout = timedelta(seconds=(stall or 7 * 24 * 3600) + 2 * SILENT_SECONDS)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=torch.distributed.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    watch = Watch(torch.distributed.PrefixStore("watch", store), rank, size, name, stall)
    watch.start()
    try:
        yield World(rank, size, watch)
    except UserError as error:
        if not watch.first():
            sys.exit(2)
        raise UserError(f"rank {rank} of {size}: {error}") from error
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        time.sleep(_PATIENCE)
        if not watch.first():
            sys.exit(2)
        suspects = "; ".join(map(str, watch.behind(3 * watch.interval)))
        raise UserError(f"{name}: a process is lost: {suspects or str(error).splitlines()[0]}") from error
    watch.stop()
    torch.distributed.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process is gone; gloo has no exception of its own."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in words)
