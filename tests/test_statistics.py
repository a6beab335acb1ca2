"""Intervals and tests against closed forms, published examples and simulated coverage."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.comparison import statistics
from pipeline.comparison.statistics import Summary, bootstrap, holm, mcnemar, t_interval

VERDICTS = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))
Simulation = Callable[[float, float, float, int, int], dict[str, float]]


@given(st.lists(st.floats(0, 100), min_size=3, max_size=8))
def test_summaries_are_numpys_mean_and_sample_deviation(values: list[float]) -> None:
    got = Summary.of(dict(enumerate(values)))
    assert got.mean == pytest.approx(np.mean(values))
    assert got.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert list(got.runs.values()) == values


@pytest.mark.parametrize("values", [[50.0], [50.0, 60.0]])
def test_fewer_than_three_runs_have_neither_deviation_nor_interval(values: list[float]) -> None:
    assert Summary.of(dict(enumerate(values))).std is None
    assert t_interval(values, 0.95) is None


# Student's t interval over seeds


@given(st.lists(st.integers(0, 500), min_size=3, max_size=6), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_t_interval_is_scipys_paired_one(hits: list[int], data: st.DataObject, level: float) -> None:
    others = data.draw(st.lists(st.integers(0, 500), min_size=len(hits), max_size=len(hits)))
    if len(set(np.subtract(hits, others))) == 1:  # no spread: the next test but one
        others[0] += 1
    expected = stats.ttest_rel(hits, others).confidence_interval(level)
    assert t_interval(np.subtract(hits, others), level) == pytest.approx((expected.low, expected.high))


def test_the_t_interval_of_a_textbook_example() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and t(0.975, 2) = 4.3027.
    half = 4.3027 / math.sqrt(3)
    assert t_interval([1.0, 2.0, 3.0], 0.95) == pytest.approx((2 - half, 2 + half), abs=1e-4)


def test_pairs_that_all_differ_alike_have_no_t_interval_whatever_their_rounding() -> None:
    """Accuracies of counts on 500 images, shifted alike, differ in their last bits."""
    counts = (207, 78, 133)
    shifted = [100 * float(1 - (count + 16) / 500) - 100 * float(1 - count / 500) for count in counts]
    assert len(set(shifted)) > 1
    assert t_interval(shifted, 0.95) is None


# The bootstrap


def test_the_bootstrap_of_one_seed_is_that_of_a_share() -> None:
    """With one seed only images are drawn, and the resampled sum of 0s and 1s is binomial."""
    n, ones, level = 50, 20, 0.9
    block = np.array([[1] * ones + [0] * (n - ones)])
    ((low, high),) = bootstrap([block], level, 20000, 0)
    expected = stats.binom(n, ones / n).ppf([0.05, 0.95]) / n
    assert (low, high) == pytest.approx(tuple(expected), abs=1.01 / n)


def test_the_bootstrap_of_seeds_alone_reaches_from_the_lowest_to_the_highest_of_three() -> None:
    """All images of a seed alike: of 27 equally likely draws one is three times the lowest, more than 2.5 %."""
    block = np.repeat([[-1], [0], [1]], 40, axis=1)
    ((low, high),) = bootstrap([block], 0.95, 2000, 0)
    assert (low, high) == (-1, 1)
    assert Fraction(1, 27) > Fraction(25, 1000)


def test_the_bootstrap_spreads_as_the_crossed_design_says() -> None:
    """Its variance, for a small block, from all draws of 2 seeds and 3 images, enumerated."""
    block = np.array([[1, 0, -1], [1, 1, 0]])
    means = [block[np.ix_(seeds, images)].mean() for seeds in np.ndindex(2, 2) for images in np.ndindex(3, 3, 3)]
    levels = (0.5, 0.8)
    for level in levels:
        ((low, high),) = bootstrap([block], level, 40000, 1)
        expected = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        assert (low, high) == pytest.approx(tuple(expected), abs=1e-12)


def test_equal_seeds_give_equal_intervals_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [np.random.default_rng(n).integers(-1, 2, (3, 40)) for n in range(2)]
    first = bootstrap(blocks, 0.95, 500, 7)
    assert np.array_equal(first, bootstrap(blocks, 0.95, 500, 7))
    assert not np.array_equal(first, bootstrap(blocks, 0.95, 500, 8))
    monkeypatch.setattr(statistics, "CHUNK", 40 * 7)
    assert np.array_equal(first, bootstrap(blocks, 0.95, 500, 7))


def test_a_block_has_the_same_interval_in_any_company() -> None:
    one, other, short = (np.random.default_rng(n).integers(-1, 2, (s, 40)) for n, s in ((0, 3), (1, 3), (2, 4)))
    assert np.array_equal(bootstrap([one], 0.95, 500, 0)[0], bootstrap([other, one], 0.95, 500, 0)[1])
    assert len(bootstrap([one, short], 0.95, 500, 0)) == 2


def test_the_bootstrap_leaves_global_random_states_alone(untouched_random_state: None) -> None:
    bootstrap([np.ones((3, 10), int)], 0.95, 100, 0)


@pytest.fixture(scope="module")
def simulate() -> Simulation:
    """How often 95 % intervals cover 0, the true difference, for normal effects of these deviations.

    `nested` draws images for every seed anew; `either` asks whether bootstrap or t interval covers.
    """

    def run(seed_effect: float, image_effect: float, noise: float, seeds: int, images: int) -> dict[str, float]:
        rng, hits, trials = np.random.default_rng(0), dict.fromkeys(("crossed", "t", "either", "nested"), 0), 300
        for trial in range(trials):
            block = seed_effect * rng.standard_normal((seeds, 1)) + image_effect * rng.standard_normal((1, images))
            block = block + noise * rng.standard_normal((seeds, images))
            ((low, high),) = bootstrap([block], 0.95, 400, trial)
            t_low, t_high = t_interval(block.mean(1), 0.95)
            anew = rng.multinomial(images, np.full(images, 1 / images), (400, seeds)) * block
            chosen = rng.multinomial(seeds, np.full(seeds, 1 / seeds), 400)
            nested = np.quantile((chosen * anew.mean(2)).mean(1), [0.025, 0.975])
            hits["crossed"] += low <= 0 <= high
            hits["t"] += t_low <= 0 <= t_high
            hits["either"] += low <= 0 <= high or t_low <= 0 <= t_high
            hits["nested"] += nested[0] <= 0 <= nested[1]
        return {name: count / trials for name, count in hits.items()}

    return run


def test_where_seeds_alone_vary_three_of_them_cover_three_quarters(simulate: Simulation) -> None:
    """The closed form of the docstring: the truth lies between the extremes of S seeds with chance 1 - 2^(1 - S)."""
    covered = simulate(1.0, 0.0, 0.0, 3, 20)
    assert covered["crossed"] == pytest.approx(1 - 2.0 ** (1 - 3), abs=0.07)
    assert covered["t"] == pytest.approx(0.95, abs=0.035)


def test_where_images_vary_too_the_bootstrap_covers_and_the_t_interval_does_not(simulate: Simulation) -> None:
    covered = simulate(0.0, 1.0, 0.5, 5, 60)
    assert covered["crossed"] >= 0.92
    assert covered["t"] < 0.6
    assert covered["nested"] < 0.88, "drawing images for each seed anew takes what they share for independent"


@pytest.mark.parametrize(
    "effects", [(1.0, 0.0, 0.1), (0.1, 0.5, 1.0), (0.0, 1.0, 1.0), (0.06, 0.3, 0.3), (0.0, 0.0, 1.0)]
)
def test_one_of_the_two_intervals_covers(simulate: Simulation, effects: tuple[float, float, float]) -> None:
    """What bold print rests on: both intervals exclude 0 wrongly in no more than about 5 % of cases."""
    assert simulate(*effects, 3, 60)["either"] >= 0.925


# McNemar's test


@given(VERDICTS)
def test_mcnemars_p_is_the_sum_of_binomial_chances(verdicts: tuple[list[bool], list[bool]]) -> None:
    mine, theirs = map(np.array, verdicts)
    got = mcnemar(mine, theirs)
    won, lost = sum(mine & ~theirs), sum(theirs & ~mine)
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert (got.won, got.lost) == (won, lost)
    assert got.p == pytest.approx(min(1, 2 * tail))


def test_mcnemars_test_of_a_textbook_example() -> None:
    """Ten disagreements, nine of them one way: 2 (1 + 10) / 1024."""
    mine = np.array([True] * 9 + [False] + [True] * 50)
    theirs = np.array([False] * 9 + [True] + [True] * 50)
    assert mcnemar(mine, theirs).p == pytest.approx(22 / 1024)


def test_models_that_never_disagree_are_not_told_apart() -> None:
    same = np.array([True, False])
    assert mcnemar(same, same).p == 1


@given(VERDICTS)
def test_mcnemars_test_does_not_ask_who_is_who(verdicts: tuple[list[bool], list[bool]]) -> None:
    mine, theirs = map(np.array, verdicts)
    assert mcnemar(mine, theirs).p == pytest.approx(mcnemar(theirs, mine).p)


# Holm's correction


def test_holm_of_a_worked_example() -> None:
    """4 x 0.005, 3 x 0.01, 2 x 0.03 and 0.04, which may not fall below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    """Holm (1979): go from the least p on while it is at most alpha / (tests that are left)."""
    adjusted = holm(p)
    for alpha in (0.01, 0.05, 0.3):
        rejected, left = set(), sorted(range(len(p)), key=p.__getitem__)
        while left and p[left[0]] * len(left) <= alpha:
            rejected.add(left.pop(0))
        assert {n for n, value in enumerate(adjusted) if value <= alpha} == rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    assert all(one <= got <= min(1, len(p) * one) + 1e-12 for one, got in zip(p, holm(p), strict=True))


def test_holm_keeps_the_chance_of_any_false_alarm() -> None:
    """All of 20 null hypotheses true: some corrected p is below 0.05 in 5 % of families."""
    families = np.random.default_rng(0).uniform(size=(2000, 20))
    assert np.mean([min(holm(p)) < 0.05 for p in families]) == pytest.approx(0.05, abs=0.015)


def test_no_tests_need_no_correction() -> None:
    assert holm([]) == []
