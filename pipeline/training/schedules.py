"""Learning-rate schedules as plain functions of the progress of training."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import Schedule

_START, _END = 25.0, 1e4  # torch's OneCycleLR: peak / start, start / end


def rate(schedule: "Schedule", peak: float, progress: float) -> float:
    """The learning rate after the share `progress` in [0, 1) of all steps.

    constant: the peak. cosine: half a cosine from the peak to 0 (Loshchilov, Hutter 2017).
    piecewise: multiplied by `factor` at each share of `milestones`; Rice et al. 2020 have 1/2
    and 3/4, the released ADT code 74 of its 76 epochs. one_cycle: half a cosine from peak / 25 up to
    the peak over the share `warmup`, then down to peak / 250,000 (Smith, Topin 2017, as in torch).
    """
    if schedule.name == "cosine":
        return _anneal(peak, 0.0, progress)
    if schedule.name == "piecewise":
        passed = sum(progress >= milestone for milestone in schedule.milestones)
        return peak * schedule.factor**passed
    if schedule.name == "one_cycle":
        start, warmup = peak / _START, schedule.warmup
        if progress < warmup:
            return _anneal(start, peak, progress / warmup)
        return _anneal(peak, start / _END, (progress - warmup) / (1 - warmup))
    return peak


def _anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
