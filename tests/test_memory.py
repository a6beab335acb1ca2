"""Memory that runs out: the largest batch that fits is found by trying, and named in one line with its key."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_settings import METHODS, train_settings
from torch import Tensor, nn

from pipeline import adversaries, memory, params
from pipeline.attacks import suite
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.perturbation import Linf
from pipeline.seeding import Stream
from pipeline.training.loop import Trainer


class Hungry(nn.Module):
    """A linear classifier of a device that holds `most` images at once."""

    def __init__(self, most: int, error: type[RuntimeError] = torch.OutOfMemoryError, words: str = "CUDA") -> None:
        super().__init__()
        self.linear, self.most, self.error, self.words = nn.Linear(36, 3), most, error, words

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error(self.words)
        return self.linear(x.flatten(1))


class Normalised(Hungry):
    """The same with a batch norm, which refuses batches that its parts cannot share."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


@pytest.fixture
def examples() -> Split:
    rows = Stream.of(0, "test images").at(torch.arange(60))
    return Split(rows.uniform(1, 6, 6), torch.arange(60) % 3, torch.arange(60))


def trainer(model: nn.Module, batch: int, path: Path, selection: int = 60, devices: int = 1) -> Trainer:
    attack = params.Selection(steps=1, step_size=0.1, batch_size=selection)
    settings = train_settings(batch_size=batch, selection=attack, devices=devices)
    adversary = adversaries.build("at_pgd", METHODS["at_pgd"], Linf(0.1), 1, 6)
    return Trainer(model, adversary, Linf(0.1), settings, 0, path / "state.pt", "fingerprint")


def evaluation(batch: int) -> params.Evaluation:
    attacks = {"pgd-2": params.Attack(family="pgd", steps=2, step_size=0.1)}
    return params.Evaluation(batch_size=batch, seed=0, precision="fp32", devices=1, attacks=attacks)


@given(failed=st.integers(2, 5000), capacity=st.integers(0, 5000), least=st.integers(1, 4))
def test_the_size_found_fits_and_is_near_the_largest(failed: int, capacity: int, least: int) -> None:
    capacity = min(capacity, failed - 1)  # the batch that failed does not fit
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= capacity

    found = memory.largest(fits, failed, least)
    if capacity < least or least >= failed:
        assert found == 0
    else:
        assert least <= found <= capacity
        assert found in tried
        assert found > capacity * (1 - 2**-memory.REFINEMENTS) - 1
    assert len(tried) <= 13 + memory.REFINEMENTS + 1
    assert all(least <= count < failed for count in tried)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_torch_says_of_exhausted_memory_is_understood(error: RuntimeError) -> None:
    assert memory.is_exhaustion(error)


def test_a_training_batch_that_does_not_fit_is_one_line_with_a_batch_that_does(examples: Split, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        trainer(Hungry(17), 48, tmp_path).run(examples, examples.head(10))
    assert str(told.value) == (
        "params.yaml: train.batch_size: a batch of 48 needs more memory than the device has; 16 fits (tried)"
    )
    assert not (tmp_path / "state.pt").exists()
    assert told.value.__cause__ is None and told.value.__context__ is None  # frames hold the failed batch's tensors


def test_sizes_that_are_tried_can_be_shared_out_over_the_devices(examples: Split, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.batch_size: a batch of 48 .*; 15 fits \(tried\)"):
        trainer(Normalised(17), 48, tmp_path, devices=3).run(examples, examples.head(10))


def test_the_batch_that_is_named_does_fit(examples: Split, tmp_path: Path) -> None:
    progress = trainer(Hungry(17), 16, tmp_path, selection=10).run(examples, examples.head(10))
    assert len(progress.history) == 1


def test_a_validation_batch_that_does_not_fit_names_its_own_key(examples: Split, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.selection\.batch_size: a batch of 60 .* 16 fits"):
        trainer(Hungry(17), 10, tmp_path).run(examples, examples)


def test_where_nothing_fits_that_is_said(examples: Split, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.batch_size: a batch of 12 .* not even 2 fits"):
        trainer(Hungry(0), 12, tmp_path).run(examples, examples.head(10))


def test_an_attack_that_does_not_fit_names_its_key(examples: Split) -> None:
    with pytest.raises(UserError, match=r"evaluation\.batch_size: a batch of 40 .* 20 fits"):
        suite.column("pgd-2", evaluation(40), Hungry(20), examples, Linf(0.1))
    whole = suite.column("pgd-2", evaluation(20), Hungry(20), examples, Linf(0.1))
    assert len(whole.broken) == 60


def test_other_errors_pass_as_they_are(examples: Split, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^something else$"):
        trainer(Hungry(5, RuntimeError, "something else"), 12, tmp_path).run(examples, examples.head(10))


def test_of_several_processes_that_share_a_batch_none_tries_other_sizes() -> None:
    with (
        pytest.raises(UserError, match=r"^params.yaml: train.batch_size: a part of 8 needs more memory .*; lower it$"),
        memory.told("train.batch_size", 8, "lower it"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="^something else$"), memory.told("train.batch_size", 8, "lower it"):
        raise RuntimeError("something else")
