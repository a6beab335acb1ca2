"""What is concluded from the runs of the lambda study."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.studies.claims import AGAINST, CLAIMS, FALLS, RISES, SAME, SUPPORTED, UNDECIDED, decided, judge, together
from pipeline.studies.claims_text import markdown

LAMS = [0.0, 1e-4, 0.01, 10.0]
Value = Callable[[int, int], float]  # of lambda's place and the seed


ORDERS = [(0, 1, -1), (1, -1, 0), (-1, 0, 1), (0, -1, 1), (1, 0, -1)]


def noise(place: int, seed: int) -> float:
    """A small number that differs from seed to seed, otherwise at every lambda, with mean 0 over three seeds."""
    return 0.001 * ORDERS[place][seed]


def runs(method: str = "adt_exp", seeds: int = 3, tau: float | None = None, **columns: Value) -> list[dict[str, Any]]:
    """Rows of one method: flat with noise, but for the columns given."""
    plain: dict[str, Value] = {
        "val_robust": lambda place, _: 0.5 + 0.01 * (place == 2),
        "natural": lambda place, seed: 0.9 + noise(place, seed),
        "pgd-20": lambda place, seed: 0.5 + noise(place, seed),
        "worst-case": lambda place, seed: 0.45 + noise(place, seed),
        "entropy": lambda place, seed: place - 2 + noise(place, seed),
        "diversity": lambda place, seed: 0.1 * place + noise(place, seed),
        "adversarial_loss": lambda place, seed: 1 - 0.1 * place + noise(place, seed),
        "code_length": lambda place, seed: 1.0,
    }
    return [
        {"method": method, "lam": lam, "tau": tau if lam else None, "seed": seed}
        | {name: value(place, seed) for name, value in (plain | columns).items()}
        for place, lam in enumerate(LAMS)
        for seed in range(seeds)
    ]


def reference(seeds: int = 3) -> list[dict[str, Any]]:
    """AT_PGD, as robust as lambda 0 but for the noise."""
    values = {"natural": 0.9, "pgd-20": 0.5, "worst-case": 0.45}
    return [
        {"method": "at_pgd", "lam": None, "tau": None, "seed": seed}
        | {name: value + noise(4, seed) for name, value in values.items()}
        for seed in range(seeds)
    ]


def claims(rows: list[dict[str, Any]], confidence: float = 0.95) -> dict[str, dict[str, Any]]:
    """The claims about the one method of `rows`, by name."""
    judged = judge(rows, "pgd-20", confidence)
    assert json.loads(json.dumps(judged, allow_nan=False)) == judged
    return {claim["claim"]: claim for claim in judged["claims"]}


MEASURES = ("entropy", "code_length", "diversity", "adversarial_loss")


# Verdicts


@pytest.mark.parametrize(
    "interval, rises, falls, same",
    [
        ((0.1, 0.3), SUPPORTED, AGAINST, AGAINST),
        ((-0.3, -0.1), AGAINST, SUPPORTED, AGAINST),
        ((-0.1, 0.1), UNDECIDED, UNDECIDED, UNDECIDED),
        ((0.0, 0.1), UNDECIDED, UNDECIDED, UNDECIDED),
        (None, UNDECIDED, UNDECIDED, UNDECIDED),
    ],
)
def test_an_interval_supports_refutes_or_decides_nothing_and_never_supports_sameness(interval, rises, falls, same):
    assert [decided(interval, claimed) for claimed in (RISES, FALLS, SAME)] == [rises, falls, same]


@given(st.lists(st.sampled_from([SUPPORTED, AGAINST, UNDECIDED]), min_size=1))
def test_a_claim_holds_as_its_worst_part_does(verdicts: list[str]) -> None:
    assert (together(verdicts) == SUPPORTED) == (set(verdicts) == {SUPPORTED})
    assert (together(verdicts) == AGAINST) == (AGAINST in verdicts)


# Accuracies


def test_a_gain_is_that_of_the_lambda_which_validation_chose_and_not_of_the_best_on_test_images() -> None:
    best_on_test = [0.0, 0.2, 0.1, -0.1]
    rows = runs(**{"pgd-20": lambda place, seed: 0.5 + best_on_test[place] + noise(place, seed)}) + reference()
    found = claims(rows)["gain"]
    assert found["chosen"] == {"lam": 0.01, "tau": None, "val_robust": 51.0, "val_robust_lambda_0": 50.0}
    part = found["parts"][0]
    chosen, zero = ([row["pgd-20"] for row in rows if row["lam"] == lam] for lam in (0.01, 0.0))
    differences = 100 * (np.array(chosen) - np.array(zero))
    assert list(part["seeds"].values()) == pytest.approx(differences, abs=1e-5)
    interval = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert [part["mean"], part["low"], part["high"]] == pytest.approx([differences.mean(), *interval], abs=1e-5)
    assert part["verdict"] == SUPPORTED
    assert [part["quantity"] for part in found["parts"]] == ["pgd-20", "worst-case"]


def test_a_gain_under_one_attack_alone_is_no_gain() -> None:
    up: Value = lambda place, seed: 0.5 + 0.1 * (place == 2) + noise(place, seed)  # noqa: E731
    assert claims(runs(**{"pgd-20": up}) + reference())["gain"]["verdict"] == UNDECIDED
    assert claims(runs(**{"pgd-20": up, "worst-case": up}) + reference())["gain"]["verdict"] == SUPPORTED


def test_lambda_0_is_never_chosen_but_it_is_said_where_validation_prefers_it() -> None:
    rows = runs(val_robust=lambda place, _: 0.9 - place / 10) + reference()
    assert claims(rows)["gain"]["chosen"]["lam"] == 1e-4
    assert "80.00 % there, no higher than the 90.00 % of lambda 0" in markdown(
        "digits", judge(rows, "pgd-20", 0.95), 5, 500
    )


def test_the_chosen_lambda_and_lambda_0_are_compared_with_at_pgd_of_the_same_seeds() -> None:
    below: Value = lambda place, seed: 0.3 + noise(place, seed)  # noqa: E731
    found = claims(runs(**{"pgd-20": below}) + reference())
    assert found["better"]["verdict"] == AGAINST and found["better"]["parts"][0]["mean"] == pytest.approx(-20, abs=0.2)
    assert found["degenerate"]["verdict"] == AGAINST
    alike = claims(runs() + reference())["degenerate"]
    assert alike["verdict"] == UNDECIDED and [part["quantity"] for part in alike["parts"]] == [
        "natural",
        "pgd-20",
        "worst-case",
    ]


@pytest.mark.parametrize("fall, verdict", [(-0.4, SUPPORTED), (0.4, AGAINST), (0.0, UNDECIDED)])
@pytest.mark.parametrize("column", ["worst-case", "adversarial_loss"])
def test_a_large_lambda_is_harmless_if_the_loss_of_its_samples_and_the_worst_case_fall(
    column: str, fall: float, verdict: str
) -> None:
    down: Value = lambda place, seed: 0.5 - 0.1 * (place == 3) + noise(place, seed)  # noqa: E731
    moved: Value = lambda place, seed: 0.45 + fall * (place == 3) + noise(place, seed)  # noqa: E731
    rows = runs(**{"worst-case": down, "adversarial_loss": down} | {column: moved}) + reference()
    found = claims(rows)["harmless"]
    assert found["verdict"] == verdict and {part["lam"] for part in found["parts"]} == {10}


# Trends


def test_a_trend_has_all_its_means_and_steps_and_kendalls_correlation() -> None:
    rows = runs() + reference()
    entropy, diversity = claims(rows)["broader"]["parts"]
    assert (entropy["quantity"], diversity["quantity"]) == ("entropy", "diversity")
    own = [row for row in rows if row["method"] == "adt_exp"]
    expected = stats.kendalltau([row["lam"] for row in own], [row["entropy"] for row in own])
    assert (entropy["kendall"], entropy["p"]) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-6)
    assert entropy["lambdas"] == LAMS and entropy["means"] == pytest.approx([-2, -1, 0, 1], abs=0.002)
    assert [step["mean"] for step in entropy["steps"]] == pytest.approx([1, 1, 1], abs=0.002)
    assert entropy["change"]["mean"] == pytest.approx(3, abs=0.002)
    assert claims(rows)["broader"]["verdict"] == SUPPORTED


@pytest.mark.parametrize(
    "values, verdict",
    [
        ([1.0, 0.9, 0.8, 0.7], SUPPORTED),
        ([1.0, 1.2, 0.8, 0.7], AGAINST),
        ([1.0, 1.00001, 0.8, 0.7], UNDECIDED),
        ([1.0, 0.9, 0.8, 1.00001], AGAINST),
        ([1.0, 1.1, 1.2, 1.3], AGAINST),
    ],
    ids=["falls", "a step rises", "a step may rise", "the last step rises", "rises"],
)
def test_a_fall_is_one_at_every_step(values: list[float], verdict: str) -> None:
    rows = runs(adversarial_loss=lambda place, seed: values[place] + noise(place, seed)) + reference()
    assert claims(rows)["milder"]["verdict"] == verdict


def test_with_fewer_than_three_seeds_nothing_is_decided() -> None:
    rows = runs(seeds=2) + reference(2)
    judged = judge(rows, "pgd-20", 0.95)
    assert {claim["verdict"] for claim in judged["claims"]} == {UNDECIDED}
    assert "too few seeds" in markdown("digits", judged, 5, 500)


def test_runs_that_differ_alike_have_no_interval() -> None:
    rows = runs(entropy=lambda place, _: place, diversity=lambda place, _: 0.0) + reference()
    entropy, diversity = claims(rows)["broader"]["parts"]
    assert entropy["change"]["low"] is None and entropy["verdict"] == UNDECIDED
    assert diversity["kendall"] is None
    assert "all seeds differ alike" in markdown("digits", judge(rows, "pgd-20", 0.95), 5, 500)


# A method with thresholds


def implicit() -> list[dict[str, Any]]:
    """Two thresholds that share lambda 0, which has no code length; the second one's code grows with lambda."""
    rows = []
    for tau, slope in ((0.5, -0.1), (0.7, 0.1)):
        length: Value = lambda place, seed, slope=slope: 0.8 + slope * place + noise(place, seed)  # noqa: E731
        better: Value = lambda place, seed, tau=tau: tau + noise(place, seed)  # noqa: E731
        rows += [
            row | {"entropy": None} | ({} if row["lam"] else {"code_length": None})
            for row in runs("adt_imp_am", tau=tau, code_length=length, val_robust=better)
            if row["lam"] or tau == 0.5
        ]
    return rows


def test_thresholds_are_lines_of_their_own_from_the_same_lambda_0() -> None:
    found = claims(reference() + implicit())
    length, diversity, other, _ = found["broader"]["parts"]
    assert [part["tau"] for part in found["broader"]["parts"]] == [0.5, 0.5, 0.7, 0.7]
    assert length["quantity"] == "code_length" and length["lambdas"] == LAMS[1:] and diversity["lambdas"] == LAMS
    assert (length["verdict"], other["verdict"], found["broader"]["verdict"]) == (SUPPORTED, AGAINST, AGAINST)
    assert found["gain"]["chosen"]["tau"] == 0.7
    assert [part["tau"] for part in found["harmless"]["parts"]] == [0.5, 0.5, 0.7, 0.7]


# The text


def test_the_text_has_every_claim_about_every_method_and_every_difference_that_was_judged() -> None:
    rows = reference() + runs() + runs("adt_exp_am") + implicit()
    judged = judge(rows, "pgd-20", 0.9)
    text = markdown("digits", judged, 7, 321)
    header = next(line for line in text.splitlines() if line.startswith("| claim"))
    assert header == "| claim | ADT_EXP | ADT_EXP-AM | ADT_IMP-AM |"
    assert all(f"| {number}. {said} |" in text for number, said in enumerate(CLAIMS.values(), 1))
    assert "7 epoch(s)" in text and "321 test images" in text and "90 %" in text
    assert "Lambda 0 leaves the encoder untrained" in text and "no proof of equality" in text
    for claim in judged["claims"]:
        for part in claim["parts"]:
            digits, shown = ("+.3g", part.get("change", part)) if part["quantity"] in MEASURES else ("+.2f", part)
            assert (
                f"{shown['mean']:{digits}}" in text and f"[{shown['low']:{digits}}, {shown['high']:{digits}}]" in text
            )


def test_the_text_names_the_steps_that_go_the_other_way() -> None:
    values = [1.0, 1.2, 0.8, 0.7]
    rows = runs(adversarial_loss=lambda place, seed: values[place] + noise(place, seed)) + reference()
    text = markdown("digits", judge(rows, "pgd-20", 0.95), 5, 500)
    assert "but not from 0 to 0.0001 +0.2 [" in text and "it rises at every step" in text
