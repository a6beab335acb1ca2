"""Random numbers are a pure function of (seed, purpose, example, draw)."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline import seeding
from pipeline.seeding import Noise, Stream, seeded_globals

INDICES = st.lists(st.integers(0, 2**40), min_size=1, max_size=8)


def test_uniform_numbers_are_uniform() -> None:
    sample = Stream.of(0, "test").at(torch.arange(2000)).uniform(5, 10)
    assert stats.kstest(sample.flatten().numpy(), "uniform").pvalue > 0.01


def test_normal_numbers_are_standard_normal() -> None:
    sample = Stream.of(0, "test").at(torch.arange(2000)).normal(5, 10)
    assert stats.kstest(sample.flatten().numpy(), "norm").pvalue > 0.01


def test_signs_are_fair_coins() -> None:
    sample = Stream.of(0, "test").at(torch.arange(2000)).signs(5, 10).flatten()
    assert set(sample.tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((sample > 0).sum()), len(sample)).pvalue > 0.01


def test_extreme_bits_give_neither_0_nor_1_nor_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "_hash", lambda self, count, draw: torch.tensor([[0, -1]]))
    noise = Stream.of(0).at(torch.zeros(1, dtype=torch.int64))
    assert noise.uniform(2).tolist() == [[2.0**-24, 1 - 2.0**-24]]
    assert noise.normal(2).abs().max() < 5.3
    assert noise.signs(2).tolist() == [[-1.0, 1.0]]


def splitmix_finaliser(z: int) -> int:
    """Steele, Lea, Flood (2014), figure 15, in Python's own integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(st.integers(0, 2**31), st.integers(0, 2**40), st.integers(0, 2**20))
def test_the_bits_are_splitmix64_applied_to_example_then_to_position(seed: int, example: int, draw: int) -> None:
    stream = Stream.of(seed, "test")
    got = stream.at(torch.tensor([example])).uniform(3, draw=draw)[0]
    row = splitmix_finaliser((example * 0x9E3779B97F4A7C15 + stream.key) % 2**64)
    words = [splitmix_finaliser((row + (j + (draw << 32)) * 0x9E3779B97F4A7C15) % 2**64) for j in range(2)]
    bits = [words[0] >> 41, words[1] >> 41, (words[0] >> 18) % 2**23]
    assert got.tolist() == [(b + 0.5) / 2**23 for b in bits]


@pytest.mark.parametrize("kind", ["uniform", "normal", "signs"])
@given(index=INDICES, data=st.data())
def test_a_row_depends_on_its_index_alone(kind: str, index: list[int], data: st.DataObject) -> None:
    stream = Stream.of(3, "test")
    order = data.draw(st.permutations(range(len(index))))
    cut = data.draw(st.integers(0, len(index)))

    def rows(of: list[int]) -> torch.Tensor:
        return getattr(stream.at(torch.tensor(of, dtype=torch.int64)), kind)(2, 3, draw=5)

    whole = rows(index)
    assert torch.equal(rows([index[i] for i in order]), whole[list(order)])
    assert torch.equal(torch.cat([rows(index[:cut]), rows(index[cut:])]), whole)


def test_the_shape_only_arranges_the_numbers() -> None:
    noise = Stream.of(0, "test").at(torch.arange(3))
    assert torch.equal(noise.uniform(2, 3, 4), noise.uniform(24).view(3, 2, 3, 4))


INDEX = torch.arange(20_000)
HERE = Stream.of(0, "adversary", 1).at(INDEX)


@pytest.mark.parametrize(
    "other",
    [
        HERE.uniform(1, draw=1),
        HERE.uniform(2)[:, 1],
        Stream.of(0, "adversary", 2).at(INDEX).uniform(1),
        Stream.of(0, "validation", 1).at(INDEX).uniform(1),
        Stream.of(1, "adversary", 1).at(INDEX).uniform(1),
        Stream.of(0, "adversary", 1).at(INDEX + 1).uniform(1),
    ],
    ids=["draw", "position", "epoch", "purpose", "seed", "neighbour"],
)
def test_numbers_of_different_origin_are_uncorrelated(other: torch.Tensor) -> None:
    first, second = HERE.uniform(1).flatten().numpy(), other.flatten().numpy()
    assert stats.pearsonr(first, second).pvalue > 0.01
    assert stats.spearmanr(np.abs(first - 0.5), np.abs(second - 0.5)).pvalue > 0.01


@given(st.integers(0, 200), st.integers(0, 5))
def test_a_permutation_orders_every_number_once_and_is_repeatable(n: int, epoch: int) -> None:
    order = Stream.of(0, "order", epoch).permutation(n)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, Stream.of(0, "order", epoch).permutation(n))


def test_epochs_have_different_orders() -> None:
    orders = {tuple(Stream.of(0, "order", epoch).permutation(20).tolist()) for epoch in range(10)}
    assert len(orders) == 10


def test_a_streams_generator_always_starts_anew() -> None:
    first, second = (torch.rand(5, generator=Stream.of(0, "test").generator()) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.usefixtures("untouched_random_state")
def test_drawing_leaves_global_random_states_alone() -> None:
    stream = Stream.of(0, "test")
    noise = stream.at(torch.arange(5))
    noise.uniform(3), noise.normal(3), noise.signs(3)
    stream.permutation(10), torch.rand(3, generator=stream.generator())


@pytest.mark.usefixtures("untouched_random_state")
def test_seeding_the_globals_is_undone_even_after_an_error() -> None:
    with seeded_globals(Stream.of(0, "test")):
        torch.rand(3)
    with pytest.raises(KeyError), seeded_globals(Stream.of(0, "test")):
        raise KeyError


def test_globals_seeded_by_one_stream_give_the_same_layer() -> None:
    layers = []
    for warm_up, purpose in ((0, "a"), (7, "a"), (0, "b")):
        torch.rand(warm_up)
        with seeded_globals(Stream.of(0, purpose)):
            layers.append(torch.nn.Linear(4, 4).weight)
    assert torch.equal(layers[0], layers[1])
    assert not torch.equal(layers[0], layers[2])


def test_restored_states_repeat_the_numbers_of_every_library() -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    state = seeding.capture()
    first = draw()
    seeding.restore(state)
    assert draw() == first


@pytest.mark.parametrize(("one", "other"), [(("a/b",), ("a", "b")), ((1,), ("1",)), (("a",), ("a", ""))])
def test_different_names_are_different_streams(one: tuple, other: tuple) -> None:
    assert Stream.of(0, *one) != Stream.of(0, *other)
