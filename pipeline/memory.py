"""Running out of a device's memory, told in one line that names a batch size which fits."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from pipeline.errors import UserError

Result = TypeVar("Result")
REFINEMENTS = 3  # sizes tried between the largest that fits and the smallest that does not
# What torch says where it has no exception of its own: MPS, and the CPU's allocator.
_WORDS = ("out of memory", "can't allocate memory")


def bounded(
    work: Callable[[], Result],
    key: str,
    batch: int,
    attempt: Callable[[int], object],
    least: int = 1,
    multiple: int = 1,
) -> Result:
    """The result of `work`, which takes a batch of `batch` examples, as the parameter `key` says.

    Where the device's memory does not hold it: `UserError` with the key, what was tried and a batch size that
    fits, found by `attempt`, which does the same work on so many examples, at least `least` and a multiple of
    `multiple`. What `attempt` changes does not matter: the process is about to end.
    """
    try:
        return work()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_exhaustion(error):
            raise
    # Only here, behind the handler, are the tensors of the failed attempt free.
    size = largest(lambda count: _fits(lambda: attempt(count - count % multiple)), batch, least)
    size -= size % multiple
    free()
    advice = f"{size} fits (tried)" if size else f"not even {least} fits"
    raise UserError(f"params.yaml: {key}: a batch of {batch} needs more memory than {_device()} has; {advice}")


@contextlib.contextmanager
def told(key: str, batch: int, advice: str) -> Iterator[None]:
    """Memory that runs out inside becomes a `UserError` with the key, the batch of this process, and `advice`.

    For work that several processes share: sizes cannot be tried, since the others take no part.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        raise UserError(
            f"params.yaml: {key}: a part of {batch} needs more memory than {_device()} has; {advice}"
        ) from None


def is_exhaustion(error: BaseException) -> bool:
    """Whether an exception says that a device's memory is exhausted."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def largest(fits: Callable[[int], bool], failed: int, least: int = 1) -> int:
    """A batch size from `least` to below `failed` that fits, 0 where none does: by halving, then a few sizes between.

    With r refinements it is above 1 - 2^-r of the largest size that fits, where a larger batch never needs less.
    """
    good, bad = max(failed // 2, least), failed
    while good < bad and not fits(good):
        good, bad = max(good // 2, least), good
    if good == bad:
        return 0
    for _ in range(REFINEMENTS):
        middle = (good + bad) // 2
        if middle == good:
            break
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def free() -> None:
    """Give back what no tensor uses any longer."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _fits(attempt: Callable[[], object]) -> bool:
    free()
    try:
        attempt()
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        return False
    return True


def _device() -> str:
    if not torch.cuda.is_available():
        return "the device"
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f"{torch.cuda.get_device_name()} ({total / 2**30:.0f} GiB)"
