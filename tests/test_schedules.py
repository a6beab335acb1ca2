"""Learning-rate schedules against torch's own."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from pipeline.training.schedules import rate

STEPS, PEAK = 40, 0.3


@pytest.mark.parametrize(
    "name, scheduler",
    [
        ("constant", lambda optimizer: MultiStepLR(optimizer, [])),
        ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, STEPS)),
        ("piecewise", lambda optimizer: MultiStepLR(optimizer, [STEPS // 2, 3 * STEPS // 4], gamma=0.1)),
    ],
)
def test_rates_are_those_of_torchs_scheduler(name: str, scheduler: Callable[[SGD], LRScheduler]) -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    reference = scheduler(optimizer)
    for step in range(STEPS):
        assert rate(name, PEAK, step / STEPS) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()
