"""Learning-rate schedules as plain functions of the progress of training."""

import math


def rate(schedule: str, peak: float, progress: float) -> float:
    """The learning rate after the share `progress` in [0, 1) of all steps.

    "constant": the peak. "cosine": half a cosine from the peak to 0 (Loshchilov,
    Hutter 2017). "piecewise": a tenth from 1/2 on, a hundredth from 3/4 on (Rice et
    al. 2020).
    """
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "piecewise":
        return peak * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    return peak
