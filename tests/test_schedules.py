"""Learning-rate schedules against torch's own."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from pipeline.params import Schedule
from pipeline.training.schedules import rate

STEPS, PEAK = 40, 0.3


@pytest.mark.parametrize(
    "schedule, scheduler",
    [
        (Schedule(name="constant"), lambda optimizer: MultiStepLR(optimizer, [])),
        (Schedule(name="cosine"), lambda optimizer: CosineAnnealingLR(optimizer, STEPS)),
        (
            Schedule(name="piecewise", milestones=[0.5, 0.75], factor=0.1),
            lambda optimizer: MultiStepLR(optimizer, [STEPS // 2, 3 * STEPS // 4], gamma=0.1),
        ),
        (
            Schedule(name="piecewise", milestones=[0.1, 0.25, 0.9], factor=0.5),
            lambda optimizer: MultiStepLR(optimizer, [4, 10, 36], gamma=0.5),
        ),
    ],
)
def test_rates_are_those_of_torchs_scheduler(schedule: Schedule, scheduler: Callable[[SGD], LRScheduler]) -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    reference = scheduler(optimizer)
    for step in range(STEPS):
        assert rate(schedule, PEAK, step / STEPS) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("warmup", [0.2, 0.5])
def test_one_cycle_is_torchs_but_for_where_its_last_step_lies(warmup: float) -> None:
    # torch counts from the first to the last step, so its step t of n + 1 is our progress t / n.
    total = 1000
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    reference = OneCycleLR(optimizer, PEAK, total_steps=total + 1, pct_start=warmup, cycle_momentum=False)
    schedule = Schedule(name="one_cycle", warmup=warmup)
    for step in range(total):
        # torch puts the peak one step earlier.
        assert rate(schedule, PEAK, step / total) == pytest.approx(reference.get_last_lr()[0], abs=0.005 * PEAK)
        optimizer.step()
        reference.step()
    assert rate(schedule, PEAK, 0.0) == pytest.approx(PEAK / 25)
    assert rate(schedule, PEAK, warmup) == pytest.approx(PEAK)
