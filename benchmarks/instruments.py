"""What stands in for a library inside the released functions, to give them noise and to watch them."""

import contextlib
from collections.abc import Iterable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam

from benchmarks.released import replaced

Trace = list[tuple[Tensor, Tensor]]


class QueuedTorch:
    """Torch, except that its random numbers are the tensors given, in order; `ValueError` where they do not fit."""

    def __init__(self, noise: Iterable[Tensor]) -> None:
        self._noise = list(noise)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn_like(self, like: Tensor) -> Tensor:
        """The next tensor, which must have the shape of `like`."""
        return self._next(like.shape)

    def rand(self, *shape: int, **_: Any) -> Tensor:
        """The next tensor, which must have this shape."""
        return self._next(torch.Size(shape))

    def check_empty(self) -> None:
        """Refuse to have been given more than was drawn."""
        if self._noise:
            raise ValueError(f"{len(self._noise)} of the given noise tensors were not drawn")

    def _next(self, shape: torch.Size) -> Tensor:
        if not self._noise:
            raise ValueError("more noise is drawn than was given")
        tensor = self._noise.pop(0)
        if tensor.shape != shape:
            raise ValueError(f"noise of shape {tuple(shape)} is drawn, but the next tensor is {tuple(tensor.shape)}")
        return tensor


class RecordedLosses:
    """torch.nn.functional, except that it appends every cross-entropy to a list."""

    def __init__(self, losses: list[Tensor]) -> None:
        self._losses = losses

    def __getattr__(self, name: str) -> Any:
        return getattr(functional, name)

    def cross_entropy(self, *arguments: Any, **options: Any) -> Tensor:
        """The cross-entropy, recorded."""
        self._losses.append(functional.cross_entropy(*arguments, **options))
        return self._losses[-1]


class Never:
    """A log interval that no batch number is a multiple of: the one batch of our loaders is number 0."""

    def __rmod__(self, number: int) -> int:
        return 1


@contextlib.contextmanager
def queued(script: ModuleType, noise: Iterable[Tensor] | None) -> Iterator[None]:
    """Inside the block the script draws these tensors, all of them; with None it draws its own."""
    if noise is None:
        yield
        return
    queue = QueuedTorch(noise)
    with replaced(script, torch=queue):
        yield
    queue.check_empty()


@contextlib.contextmanager
def traced(script: ModuleType, trace: Trace | None) -> Iterator[None]:
    """Append copies of what the script's Adam optimises, (mean, rho), after each of its steps."""
    if trace is None:
        yield
        return

    class TracedAdam(Adam):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            mean, rho = self.param_groups[0]["params"]
            trace.append((mean.detach().clone(), rho.detach().clone()))
            return result

    with replaced(script, optim=SimpleNamespace(Adam=TracedAdam)):
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default dtype inside the block: the released `torch.zeros` and `torch.rand` name none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
