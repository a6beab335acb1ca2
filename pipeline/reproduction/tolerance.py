"""How far a reproduction on another kind of machine may lie from the recorded one, from the recorded spread.

Other arithmetic gives other last bits, and training grows them until two runs of one seed are
like runs of two seeds. So the means of n recorded and n new runs differ with standard deviation
sqrt(2 / n) times that of one run, which two numbers estimate: the sample deviation s over the
recorded seeds, and the binomial standard error b of an accuracy on the test images, which bounds
what single images flip between models. s alone would not do: estimated from three seeds it is so
often too small that `MULTIPLE` times it refuses one honest result in ten (|t| > 3 with 2 degrees
of freedom). The sum of both squares errs towards accepting, by less than a factor of sqrt(2)
where s is right.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

MULTIPLE = 3.0  # standard deviations: a table has dozens of cells, and none of them should be refused by chance
FEWEST = 3  # seeds below which a sample deviation says nothing

Cell = tuple[str, str]  # method, metric


def tolerance(mean: float, std: float | None, runs: int, examples: int, floor: float) -> float:
    """The allowed difference of two means, in points: max(floor, 3 sqrt(2 (s^2 + b^2) / runs)).

    `mean` and `std` in percent over `runs` seeds, b^2 = mean (100 - mean) / examples. The floor
    is what counts as the same result whatever the spread: where three seeds agree to the last
    image, s is 0 and says nothing, and with fewer than 3 the floor stands alone.
    """
    if std is None or runs < FEWEST:
        return floor
    variance = std**2 + mean * (100 - mean) / examples
    return max(floor, MULTIPLE * sqrt(2 * variance / runs))


def tolerances(comparison: Mapping[str, Any], floor: float) -> dict[Cell, float]:
    """The tolerance of every method and metric of a comparison.json, in points."""
    return {
        cell: tolerance(s["mean"], s["std"], len(s["runs"]), comparison["test_examples"], floor)
        for cell, s in summaries(comparison).items()
    }


def summaries(comparison: Mapping[str, Any]) -> dict[Cell, Mapping[str, Any]]:
    """Mean, deviation and runs of a comparison.json by method and metric."""
    methods = comparison["methods"].items()
    return {(method, metric): summary for method, metrics in methods for metric, summary in metrics.items()}
