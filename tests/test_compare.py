"""The comparison: what its numbers say of known verdicts, and what so few runs do not tell."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.comparison import published
from pipeline.comparison.compare import Result, compare, summarise
from pipeline.comparison.tables import columns, convincing, markdown, rows
from pipeline.verdicts import Column, Verdicts

EXAMPLES = 40
METRICS = ["natural", "pgd", "worst-case"]


def verdicts(natural: int, attacked: int) -> Verdicts:
    """A table in which this many of the examples hold: the first ones naturally, the last ones under attack."""
    ones = np.ones(EXAMPLES, np.float32)
    columns = {
        "natural": Column(np.arange(EXAMPLES) >= natural, ones, ones),
        "pgd": Column(np.arange(EXAMPLES) < EXAMPLES - attacked, ones, ones, 800, 120),
    }
    return Verdicts.join(columns, np.zeros(EXAMPLES, np.int64), np.arange(EXAMPLES), "")


def result(attacked: int, cost: int = 8, robust: Sequence[float] = (0.3, 0.5, 0.4), data: str = "d") -> Result:
    """A run of some epochs with these robust validation accuracies, of which the highest was selected."""
    history = [{"val_natural": str(0.9 + epoch / 100), "val_robust": str(v)} for epoch, v in enumerate(robust)]
    return Result(verdicts(30, attacked), data, cost, 1000 * cost, int(np.argmax(robust)) + 1, history)


def comparison(hits: dict[str, list[int]], **changes: Any) -> dict[str, Any]:
    """Methods with these many examples holding under PGD, a seed each; 30 of them hold naturally."""
    results = {
        method: {seed: result(hit, 8 * (place + 1)) for seed, hit in enumerate(runs)}
        for place, (method, runs) in enumerate(hits.items())
    }
    return compare_results(results, **changes)


def compare_results(results: dict[str, dict[int, Result]], **changes: Any) -> dict[str, Any]:
    settings = {"data": "digits", "confidence": 0.95, "resamples": 400, "seed": 0, "published": None} | changes
    return compare(results, reference=next(iter(results)), **settings)


THREE = {"at_pgd": [20, 22, 21], "adt_exp": [25, 24, 29]}
CLEAR = {"at_pgd": [10, 12, 11], "adt_exp": [30, 31, 33]}


def test_accuracies_are_percentages_with_the_worst_case_last() -> None:
    got = summarise({"at_pgd": {3: result(20), 4: result(40)}})["at_pgd"]
    assert list(got) == METRICS
    assert {name: s.runs for name, s in got.items()} == {
        "natural": pytest.approx({3: 75.0, 4: 75.0}),
        "pgd": pytest.approx({3: 50.0, 4: 100.0}),
        "worst-case": pytest.approx({3: 25.0, 4: 75.0}),  # 10 of 40 are in both groups
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
    assert content["differences"].keys() == content["tests"].keys() == {"adt_exp"}
    assert content["differences"]["adt_exp"]["pgd"]["mean"] == 12.5
    assert (content["metrics"], content["seeds"]) == (METRICS, [0, 1, 2])
    assert (content["reference"], content["confidence"], content["test_examples"]) == ("at_pgd", 0.95, EXAMPLES)
    assert content["data"] == "digits"
    assert content["gradient_evaluations_per_example_and_epoch"] == {"at_pgd": 8, "adt_exp": 16}
    assert content["gradient_evaluations"]["adt_exp"] == dict.fromkeys("012", 16000)
    assert content["selected_epoch"]["at_pgd"] == {"0": 2, "1": 2, "2": 2}


def test_the_t_interval_stands_beside_the_bootstraps() -> None:
    delta = comparison(THREE)["differences"]["adt_exp"]["pgd"]
    expected = stats.ttest_1samp([12.5, 5.0, 20.0], 0).confidence_interval(0.95)
    assert (delta["t_low"], delta["t_high"]) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert delta["low"] <= 5 and delta["high"] >= 20, "three seeds: at least from the lowest to the highest"


def test_runs_are_paired_by_seed_and_example() -> None:
    """Methods that are right on the same images differ by the seeds' images alone; another order does not."""
    content = comparison({"at_pgd": [20, 22, 24], "same": [20, 22, 24]})
    assert content["differences"]["same"]["pgd"] == {"mean": 0, "low": 0, "high": 0, "t_low": None, "t_high": None}
    results = {"at_pgd": {0: result(20), 1: result(25), 2: result(30)}}
    results["adt_exp"] = {2: result(31), 0: result(21), 1: result(26)}
    assert compare_results(results)["differences"]["adt_exp"]["pgd"]["mean"] == 2.5


def test_every_model_is_tested_against_its_partner_and_all_tests_are_corrected_together() -> None:
    content = comparison({**CLEAR, "adt_exp_am": [11, 12, 10]})
    test = content["tests"]["adt_exp"]["pgd"]["0"]
    # Of 18 tests two are clearer: those of seed 2, under attack and in the worst case. So times 16.
    assert test == {"won": 20, "lost": 0, "p": float(f"{2 / 2**20:.6g}"), "p_corrected": float(f"{32 / 2**20:.6g}")}
    everything = [t for metrics in content["tests"].values() for seeds in metrics.values() for t in seeds.values()]
    assert len(everything) == 2 * 3 * 3 and content["correction"] == "Holm"
    assert content["tests"]["adt_exp_am"]["pgd"]["2"]["lost"] == 1


def test_the_last_checkpoint_is_reported_beside_the_selected_one() -> None:
    runs = {seed: result(20, robust=(0.3, 0.5 + seed / 10, 0.4)) for seed in range(3)}
    content = compare_results({"at_pgd": runs, "adt_exp": {seed: result(20) for seed in range(3)}})
    kinds = content["checkpoints"]["at_pgd"]
    assert kinds["selected"]["robust"]["runs"] == {"0": 50, "1": 60, "2": 70}
    assert kinds["last"]["robust"] == {"mean": 40, "std": 0, "runs": {"0": 40, "1": 40, "2": 40}}
    assert kinds["change"]["robust"] == {"mean": -20, "std": 10, "runs": {"0": -10, "1": -20, "2": -30}}
    assert kinds["change"]["natural"]["mean"] == 1


@pytest.mark.parametrize("other", [{"data": "e"}, {}], ids=["another data set", "other images"])
def test_what_was_judged_on_different_images_is_not_paired(other: dict[str, str]) -> None:
    odd = result(20, **other)
    if not other:
        odd.verdicts.index[0] = 999
    content = compare_results({"at_pgd": {0: result(20)}, "adt_exp": {0: odd}})
    assert content["differences"] == content["tests"] == {}
    assert "different test images" in markdown(content, "#")


def test_seeds_that_one_method_lacks_are_left_out_of_the_pairs() -> None:
    results = {"at_pgd": {0: result(20), 1: result(20)}, "adt_exp": {1: result(22), 5: result(40)}}
    results["alone"] = {7: result(20)}
    content = compare_results(results)
    assert content["differences"]["adt_exp"]["pgd"] == {"mean": 5} | dict.fromkeys(("low", "high", "t_low", "t_high"))
    assert content["differences"]["alone"]["pgd"]["mean"] is None
    text = markdown(content, "#")
    assert "unequal seeds: at_pgd 0, 1; adt_exp 1, 5; alone 7" in text
    assert "| alone | no common seed | no common seed | no common seed |" in text
    assert json.loads(json.dumps(content, allow_nan=False)) == content


# For people


def test_rows_are_one_a_method_and_metric_with_a_column_a_seed() -> None:
    content = comparison(THREE)
    flat = rows(content)
    assert [(row["method"], row["metric"]) for row in flat] == [(method, m) for method in THREE for m in METRICS]
    attacked = flat[4]
    assert [attacked[f"seed_{seed}"] for seed in range(3)] == [62.5, 60.0, 72.5]
    assert (attacked["mean"], attacked["difference_mean"]) == (65.0, 12.5)
    assert attacked["p_corrected_seed_2"] == content["tests"]["adt_exp"]["pgd"]["2"]["p_corrected"]
    assert not any(key.startswith("difference") for key in flat[1])
    assert set(columns(content)) == set().union(*flat)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]


def test_markdown_shows_every_table() -> None:
    content = comparison(THREE)
    text = markdown(content, "# heading")
    assert text.startswith("# heading\n\n") and text.endswith("|\n")
    accuracy, change, test, best, cost = (table[-1] for table in tables(text))
    pgd, delta = content["methods"]["adt_exp"]["pgd"], content["differences"]["adt_exp"]["pgd"]
    assert accuracy[2] == f"{pgd['mean']:.1f} ± {pgd['std']:.1f}" and accuracy[-2:] == ["16", "16k (2x)"]
    assert change[2] == f"{delta['mean']:+.1f} [{delta['low']:+.1f}, {delta['high']:+.1f}]"
    assert test == ["adt_exp", "0 of 3", "0 of 3", "0 of 3"]
    assert best[1:] == ["2, 2, 2", "91.0 ± 0.0", "92.0 ± 0.0", "50.0 ± 0.0", "40.0 ± 0.0", "-10.0 ± 0.0"]
    assert cost == ["adt_exp", "20 + 3"]  # 800 gradient evaluations and 120 forward passes on 40 images
    assert "95% interval" in text and f"{EXAMPLES} test images" in text and "these 9 tests" in text


def test_every_table_row_has_as_many_cells_as_its_header() -> None:
    assert [{len(row) for row in table} for table in tables(markdown(comparison(THREE), "#"))] == [
        {6},
        {4},
        {4},
        {7},
        {2},
    ]


def test_bold_needs_both_intervals_to_exclude_0() -> None:
    clear = {"mean": 5.0, "low": 1.0, "high": 9.0, "t_low": 0.1, "t_high": 9.9}
    assert convincing(clear)
    assert convincing({name: -value for name, value in clear.items()} | {"low": -9.0, "high": -1.0})
    for doubt in ({"low": -0.1}, {"t_low": -0.1}, {"low": 0.0}, {"t_low": None, "t_high": None}):
        assert not convincing(clear | doubt)
    bold = re.findall(r"\*\*([^*]*)\*\*", markdown(comparison(CLEAR), "#"))
    assert bold == ["+50.8", "+50.8"], "under attack and in the worst case"


def test_the_score_counts_models_that_a_test_tells_apart() -> None:
    def score(hits: dict[str, list[int]]) -> str:
        return tables(markdown(comparison(hits), "#"))[2][-1][2]

    assert score(CLEAR) == "+3 of 3"
    assert score({"at_pgd": [30, 30, 10], "adt_exp": [10, 30, 30]}) == "+1 -1 of 3"
    assert score({"at_pgd": [30, 30, 30], "adt_exp": [10, 30, 29]}) == "-1 of 3"


def test_markdown_claims_no_spread_for_two_runs() -> None:
    text = markdown(comparison({"at_pgd": [20, 22], "adt_exp": [25, 24]}), "#")
    assert "±" not in text and "too few for a deviation" in text and "fewer than 3 common seeds" in text
    assert tables(text)[1][-1] == ["adt_exp", "+0.0", "+8.8", "+8.8"]


def test_one_method_alone_has_no_differences() -> None:
    text = markdown(comparison({"at_pgd": [20, 22, 21]}), "#")
    assert len(tables(text)) == 3 and "Difference" not in text


def test_the_level_of_an_interval_is_printed_in_full() -> None:
    assert "97.5% interval" in markdown(comparison(THREE, confidence=0.975), "#")


def test_a_difference_that_rounds_to_nothing_has_no_minus() -> None:
    content = comparison(THREE)
    content["differences"]["adt_exp"]["pgd"] |= {"mean": -0.01, "low": -0.04, "high": 0.02}
    assert "| +0.0 [+0.0, +0.0] |" in markdown(content, "#")


def test_published_numbers_stand_below_where_there_are_some() -> None:
    ours = {"at_pgd": {"natural": {"mean": 86.41, "std": 0.1}}}
    text = markdown(comparison(THREE, published=published.beside("table-a", ours)), "#")
    assert tables(text)[-1][2][:3] == ["at_pgd", "86.41 ± 0.10 / 86.41 (+0.00)", "not run / 55.90"]
    assert "Rice et al." in text and "single run" in text
