"""The comparison: statistics against NumPy and SciPy, and what so few runs do not tell."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.compare import Summary, compare, difference, markdown, rows, summarise
from pipeline.verdicts import Column, Verdicts

EXAMPLES = 40
HITS = st.lists(st.integers(0, EXAMPLES), min_size=3, max_size=6)


def verdicts(natural: int, attacked: int) -> Verdicts:
    """A table in which this many of the examples hold: the first ones naturally, the last ones under attack."""
    ones = np.ones(EXAMPLES, np.float32)
    columns = {
        "natural": Column(np.arange(EXAMPLES) >= natural, ones, ones),
        "pgd": Column(np.arange(EXAMPLES) < EXAMPLES - attacked, ones, ones),
    }
    return Verdicts.join(columns, np.zeros(EXAMPLES, np.int64), np.arange(EXAMPLES), "")


def summary(values: list[float]) -> Summary:
    return Summary.of(dict(enumerate(values)))


def comparison(hits: dict[str, list[int]]) -> dict:
    """Methods with these many examples holding under PGD, a seed each; 30 of them hold naturally."""
    table = {method: {seed: verdicts(30, hit) for seed, hit in enumerate(runs)} for method, runs in hits.items()}
    epochs = {method: dict.fromkeys(range(len(runs)), 7) for method, runs in hits.items()}
    return compare(table, dict.fromkeys(hits, 8), epochs, reference=next(iter(hits)), level=0.95)


THREE = {"at_pgd": [20, 22, 21], "adt_exp": [25, 24, 29]}


@given(st.lists(st.floats(0, 100), min_size=3, max_size=8))
def test_summaries_are_numpys_mean_and_sample_deviation(values: list[float]) -> None:
    got = summary(values)
    assert got.mean == pytest.approx(np.mean(values))
    assert got.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert list(got.runs.values()) == values


@pytest.mark.parametrize("values", [[50.0], [50.0, 60.0]])
def test_fewer_than_three_runs_have_neither_deviation_nor_interval(values: list[float]) -> None:
    got = difference(summary(values), summary([40.0] * len(values)), 0.95)
    assert summary(values).std is None
    assert got == {"mean": pytest.approx(np.mean(values) - 40), "low": None, "high": None}


@given(HITS, st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_is_scipys_paired_one(hits: list[int], data: st.DataObject, level: float) -> None:
    others = data.draw(st.lists(st.integers(0, EXAMPLES), min_size=len(hits), max_size=len(hits)))
    if len(set(np.subtract(hits, others))) == 1:  # no spread: the next test
        others[0] += 1
    got = difference(summary(list(map(float, hits))), summary(list(map(float, others))), level)
    expected = stats.ttest_rel(hits, others).confidence_interval(level)
    assert got["mean"] == pytest.approx(np.mean(np.subtract(hits, others)))
    assert (got["low"], got["high"]) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_textbook_example() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and t(0.975, 2) = 4.3027.
    got = difference(summary([11.0, 12.0, 13.0]), summary([10.0, 10.0, 10.0]), 0.95)
    assert got["mean"] == 2
    assert (got["low"], got["high"]) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)


def test_pairs_that_all_differ_alike_have_no_interval() -> None:
    got = difference(summary([61.0, 62.0, 63.0]), summary([60.0, 61.0, 62.0]), 0.95)
    assert got == {"mean": 1.0, "low": None, "high": None}


def test_pairs_are_matched_by_seed_not_by_order() -> None:
    one, other = Summary.of({0: 1.0, 1: 5.0, 2: 9.0}), Summary.of({2: 8.0, 0: 0.0, 1: 3.0})
    assert difference(one, other, 0.95)["mean"] == pytest.approx(4 / 3)
    assert difference(one, other, 0.95) == pytest.approx(difference(one, Summary.of({0: 0.0, 1: 3.0, 2: 8.0}), 0.95))


def test_accuracies_are_percentages_with_the_worst_case_last() -> None:
    got = summarise({"at_pgd": {3: verdicts(30, 20), 4: verdicts(10, 40)}})["at_pgd"]
    assert list(got) == ["natural", "pgd", "worst-case"]
    assert {name: s.runs for name, s in got.items()} == {
        "natural": pytest.approx({3: 75.0, 4: 25.0}),
        "pgd": pytest.approx({3: 50.0, 4: 100.0}),
        "worst-case": pytest.approx({3: 25.0, 4: 25.0}),  # 10 of 40 are in both groups
    }


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_the_comparison_is_strict_json_for_any_number_of_runs(runs: int) -> None:
    content = comparison({method: hits[:runs] for method, hits in THREE.items()})
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_the_comparison_holds_every_number() -> None:
    content = comparison(THREE)
    assert content["methods"]["adt_exp"]["pgd"] == {
        "mean": 65.0,
        "std": round(float(np.std([62.5, 60.0, 72.5], ddof=1)), 4),
        "runs": {"0": 62.5, "1": 60.0, "2": 72.5},
    }
    assert content["differences"].keys() == {"adt_exp"}
    assert content["differences"]["adt_exp"]["pgd"]["mean"] == 12.5
    assert (content["metrics"], content["seeds"]) == (["natural", "pgd", "worst-case"], [0, 1, 2])
    assert (content["reference"], content["confidence"], content["test_examples"]) == ("at_pgd", 0.95, EXAMPLES)
    assert content["gradient_evaluations_per_example_and_epoch"] == {"at_pgd": 8, "adt_exp": 8}
    assert content["selected_epoch"]["at_pgd"] == {"0": 7, "1": 7, "2": 7}


def test_rows_are_one_a_method_and_metric_with_a_column_a_seed() -> None:
    flat = rows(comparison(THREE))
    assert [(row["method"], row["metric"]) for row in flat] == [
        (method, metric) for method in THREE for metric in ("natural", "pgd", "worst-case")
    ]
    attacked = flat[4]
    assert [attacked[f"seed_{seed}"] for seed in range(3)] == [62.5, 60.0, 72.5]
    assert (attacked["mean"], attacked["difference_mean"]) == (65.0, 12.5)
    assert not any(key.startswith("difference") for key in flat[1])


def test_markdown_shows_means_deviations_differences_and_intervals() -> None:
    content = comparison(THREE)
    text = markdown(content, "# heading")
    pgd, delta = content["methods"]["adt_exp"]["pgd"], content["differences"]["adt_exp"]["pgd"]
    lines = text.splitlines()
    assert lines[0] == "# heading" and text.endswith("|\n")
    accuracy, change = (line for line in lines if line.startswith("| adt_exp |"))
    assert f"| {pgd['mean']:.1f} ± {pgd['std']:.1f} |" in accuracy and accuracy.endswith("| 8 |")
    assert f"| {delta['mean']:+.1f} [{delta['low']:+.1f}, {delta['high']:+.1f}] |" in change
    assert "95%" in text and f"{EXAMPLES} test images" in text


def test_markdown_claims_no_spread_for_two_runs() -> None:
    text = markdown(comparison({"at_pgd": [20, 22], "adt_exp": [25, 24]}), "#")
    assert "±" not in text and "too few" in text
    assert [line for line in text.splitlines() if line.startswith("| adt_exp |")][1].endswith("| +8.8 | +8.8 |")


def test_every_table_row_has_as_many_cells_as_its_header() -> None:
    tables = [line.count("|") for line in markdown(comparison(THREE), "#").splitlines() if line.startswith("|")]
    assert tables == [6] * 4 + [5] * 3


def test_an_equal_shift_has_no_interval_whatever_its_rounding() -> None:
    """Accuracies of counts on 500 images, shifted alike, differ in their last bits."""
    accuracies = [100 * float(1 - count / 500) for count in (207, 78, 133)]
    shifted = [100 * float(1 - (count + 16) / 500) for count in (207, 78, 133)]
    assert difference(summary(shifted), summary(accuracies), 0.95)["low"] is None


def test_the_level_of_an_interval_is_printed_in_full() -> None:
    table = comparison({"at_pgd": [7, 8, 9], "adt_exp": [6, 8, 8]}) | {"confidence": 0.975}
    assert "97.5% t interval" in markdown(table, "#")
