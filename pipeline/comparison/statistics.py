"""How sure a comparison of few runs on few images can be: intervals and tests, tied to no file and no method.

A difference between two methods varies with the training seed and with the test images.
Student's t interval over the seeds knows the first alone, McNemar's test the second alone;
the hierarchical bootstrap knows both, but draws what varies between seeds from very few of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST = 3  # runs, for a deviation or an interval
ROUNDING = 1e-9  # pairs closer than this differ by rounding alone
CHUNK = 2**22  # drawn indices held at once


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof 1; None with fewer than 3 runs) of one quantity over runs."""

    mean: float
    std: float | None
    runs: dict[int, float]

    @classmethod
    def of(cls, runs: Mapping[int, float]) -> "Summary":
        """Summarise one value a seed."""
        values = np.array(list(runs.values()))
        std = float(values.std(ddof=1)) if len(values) >= FEWEST else None
        return cls(float(values.mean()), std, dict(runs))


@dataclass(frozen=True)
class McNemar:
    """Two models on the same examples: how many one alone gets right, how many the other alone, and the p value."""

    won: int
    lost: int
    p: float


def t_interval(differences: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Student's t interval of the mean over seeds of paired differences.

    It speaks of further seeds judged on these very test images: where the images carry much
    of the variation, it covers the difference on all images too seldom (in simulations 83 %
    instead of 95 % with 3 seeds, and less with more). None with fewer than 3 pairs, or where
    all pairs differ alike: it would claim a precision that the runs do not show.
    """
    if len(differences) < FEWEST or np.ptp(differences) <= ROUNDING:
        return None
    interval = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def bootstrap(blocks: Sequence[np.ndarray], confidence: float, resamples: int, seed: int) -> np.ndarray:
    """Percentile intervals (len(blocks), 2) of the means of blocks, each of paired differences (seeds, N).

    Every resample draws seeds with replacement, then examples with replacement, once for all
    seeds, methods and metrics (both sides of a pair are in the difference already). Once for
    all seeds, because every seed is judged on the same images: an easy image is easy for all
    of them. Drawing images for each seed anew would treat this common part as independent,
    and cover too seldom. (Crossed, or "pigeonhole", bootstrap: Owen, Annals of Applied
    Statistics 1, 2007, who shows that with many of both it errs towards too wide.)

    What the interval cannot do: S seeds stand for all seeds, and their means spread in
    resamples by (S - 1) / S of the variance only. If seeds alone varied, the interval of 3
    would reach from the lowest to the highest of them and cover the truth in
    1 - 2^(1 - S) = 75 % of cases, not 95; where images carry the variation it covers 96 %
    and more (tests/test_statistics.py simulates both). So a claim should rest on this
    interval and on `t_interval` together: in all these simulations one of the two covers.

    Blocks of one number of seeds share their draws. Values are small whole numbers, so sums
    are exact, and equal on every machine whatever the order of summation.
    """
    rng = np.random.default_rng(seed)
    examples = blocks[0].shape[1]
    counts = sorted({len(block) for block in blocks})
    drawn = {count: rng.multinomial(count, np.full(count, 1 / count), resamples) for count in counts}
    stacked = np.concatenate(blocks).astype(np.float64)
    edges = np.cumsum([0, *map(len, blocks)])
    means = np.empty((len(blocks), resamples))
    step = max(1, CHUNK // examples)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        sums = stacked @ _multiplicities(rng, examples, part.stop - part.start).T
        for row, block in enumerate(blocks):
            weighted = drawn[len(block)][part].T * sums[edges[row] : edges[row + 1]]
            means[row, part] = weighted.sum(0) / block.size
    tail = (1 - confidence) / 2
    return np.quantile(means, [tail, 1 - tail], axis=1).T


def _multiplicities(rng: np.random.Generator, examples: int, resamples: int) -> np.ndarray:
    """How often each example is drawn in each resample: (resamples, examples)."""
    draws = rng.integers(examples, size=(resamples, examples)) + examples * np.arange(resamples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=resamples * examples)
    return counts.reshape(resamples, examples).astype(np.float64)


def mcnemar(right: np.ndarray, other: np.ndarray) -> McNemar:
    """McNemar's exact test on two models' verdicts, bool (N,), True where an example holds.

    Of the examples on which the models disagree, each side should win half if neither were
    better: a two-sided binomial test. It speaks of these two models on all images, not of
    their methods: another seed is another model. p is 1 where they never disagree.
    """
    won, lost = int((right & ~other).sum()), int((other & ~right).sum())
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return McNemar(won, lost, p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: below alpha, they err once in the whole family with chance alpha.

    Holds however the tests depend on each other (Holm, Scandinavian Journal of Statistics 6, 1979);
    scipy has no such correction.
    """
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()
