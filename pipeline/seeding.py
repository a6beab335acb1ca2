"""Random numbers as pure functions of (seed, purpose, example, draw).

A `Stream` is a 64-bit key. The number that example `i` receives in draw `t` at
position `j` is a hash of (key, i, t, j), so it depends neither on how examples
are split into batches or devices, nor on their order, nor on what was drawn
before: nothing has to be captured to resume, and no global random state is
touched. The hash is the SplitMix64 finaliser (Steele, Lea, Flood, OOPSLA 2014)
applied twice, in wrapping int64 arithmetic that is exact on every device. (A
`torch.Generator` per example would cost a Python loop over the batch, and its
numbers differ between CPU and GPU.)
"""

import contextlib
import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Stream:
    """A named family of random numbers: `Stream.of(seed, "train", epoch)`."""

    key: int

    @classmethod
    def of(cls, seed: int, *purpose: str | int) -> "Stream":
        """The stream of a seed and a purpose; different names give unrelated streams."""
        name = json.dumps([seed, *purpose])
        return cls(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True))

    def at(self, index: Tensor) -> "Noise":
        """The numbers that belong to the examples `index`: int64 (N,)."""
        return Noise(self.key, index)

    def permutation(self, n: int) -> Tensor:
        """A random order of 0..n-1: int64 (n,), on the CPU."""
        return torch.randperm(n, generator=self.generator())

    def generator(self) -> torch.Generator:
        """A CPU generator seeded by this stream, for library calls that need one."""
        return torch.Generator().manual_seed(self.key & (2**63 - 1))


@dataclass(frozen=True)
class Noise:
    """Random tensors for a batch of examples; row n depends on `index[n]` alone."""

    key: int
    index: Tensor

    def rows(self, chosen: Tensor) -> "Noise":
        """The numbers of some of the examples: `chosen` is an index or a mask over the batch."""
        return Noise(self.key, self.index[chosen])

    def branch(self, name: str | int) -> "Noise":
        """Unrelated numbers for the same examples: another restart, another candidate."""
        return Noise(Stream.of(self.key, name).key, self.index)

    def uniform(self, *shape: int, draw: int = 0) -> Tensor:
        """Uniform on the open interval (0, 1), float32 (N, *shape), 23 random bits each.

        The half-integer grid (b + 1/2) / 2^23 is exact in float32 and never rounds to 0 or 1.
        One hash gives two numbers: the first half of a row is made of its high bits, the second of lower ones.
        """
        count = math.prod(shape)
        words = self._hash((count + 1) // 2, draw)
        bits = torch.cat([words >> 41, words >> 18], 1)[:, :count].bitwise_and_(2**23 - 1)
        return bits.to(torch.float32).add_(0.5).mul_(2.0**-23).view(len(self.index), *shape)

    def normal(self, *shape: int, draw: int = 0) -> Tensor:
        """Standard normal, float32 (N, *shape), by the inverse distribution function (|r| < 5.3)."""
        return torch.erfinv(self.uniform(*shape, draw=draw).mul_(2).sub_(1)).mul_(math.sqrt(2))

    def signs(self, *shape: int, draw: int = 0) -> Tensor:
        """Rademacher variables in {-1, 1}, float32 (N, *shape)."""
        return self.uniform(*shape, draw=draw).sub_(0.5).sign_()

    def _hash(self, count: int, draw: int) -> Tensor:
        position = torch.arange(count, device=self.index.device) + (draw << 32)
        example = _mix(self.index.to(torch.int64) * _GOLDEN + self.key)
        return _mix(example[:, None] + position * _GOLDEN)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: torch's shift of int64 is arithmetic, hence the masks."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MULTIPLIERS[0])
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MULTIPLIERS[1])
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


@contextlib.contextmanager
def seeded_globals(stream: Stream) -> Iterator[None]:
    """Seed torch's global generators inside the block (for layer initialisation); restore them after."""
    with torch.random.fork_rng():
        torch.manual_seed(stream.key & (2**63 - 1))
        yield


def capture() -> dict[str, Any]:
    """Every global random state there is, for code outside our control (a user's dropout, say).

    Made of tensors and plain Python values only, so that a weights-only reader can load it.
    """
    kind, keys, *rest = np.random.get_state()
    numpy_state = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` took."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
