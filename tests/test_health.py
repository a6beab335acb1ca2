"""Health: probes against models whose answers are known, checks at their thresholds, and defences that are broken."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import defences
from pipeline import cell, params
from pipeline.cell import Cell
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.data.store import Split, load_split
from pipeline.health import checks, probes, report
from pipeline.health.examination import Finding, examine
from pipeline.params import Params
from pipeline.verdicts import Column, Verdicts
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
NAMES = [check.name for check in checks.CHECKS]


def with_health(p: Params, **changes: Any) -> Params:
    return p.model_copy(update={"health": p.health.model_copy(update=changes)})


@pytest.fixture(scope="module")
def smoke() -> Params:
    return params.parse(read_yaml(ROOT / "presets/smoke.yaml"), "smoke")


@pytest.fixture
def classes() -> int:
    return 4  # the fewest that AutoAttack's targeted loss takes


# Probes


class Linear(nn.Module):
    """Two classes, logit difference 2 w.(x - 1/2): every probe of it can be done by hand."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weights.numel(), 2, bias=False)
        self.head.weight.data = torch.stack([weights, -weights])

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x - 0.5).flatten(1))


@pytest.fixture
def linear(smoke: Params) -> probes.Subject:
    """Images in (0.3, 0.7), none of which a set of radius 0.1 clips; each has the label that the model gives it."""
    weights = torch.tensor([1.0, -2.0, 0.5, 0.25])
    x = 0.5 + 0.2 * torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (40, 1, 2, 2))).float()
    model = Linear(weights)
    threat = smoke.threat.model_copy(update={"eps": 0.1})
    p = smoke.model_copy(update={"threat": threat})
    return probes.Subject(model, Split(x, model(x).argmax(1), 100 + torch.arange(40)), p)


def held_by_hand(subject: probes.Subject, eps: float) -> float:
    """The share of images whose distance to the plane exceeds eps in the maximum norm."""
    w = subject.model.head.weight[0].detach()
    distance = ((subject.examples.x - 0.5).flatten(1) @ w).abs() / w.abs().sum()
    return float((distance > eps).double().mean())


def test_accuracy_by_radius_is_that_of_the_distance_to_the_boundary(linear: probes.Subject) -> None:
    base = params.Attack(family="pgd", steps=10, step_size=0.05)
    curve = probes.accuracy_by_radius(linear, base, [0.5, 1.0, 8.0])
    assert curve == pytest.approx({f"{r:g}": held_by_hand(linear, 0.1 * r) for r in (0.5, 1, 8)}, abs=1e-6)
    assert 0 < curve["1"] < curve["0.5"] and curve["8"] == 0


def test_accuracy_by_steps_falls_until_the_distance_is_walked(linear: probes.Subject) -> None:
    base = params.Attack(family="pgd", steps=10, step_size=0.02)
    curve = probes.accuracy_by(linear, base, "steps", [1, 2, 20])
    assert curve["1"] > curve["2"] > curve["20"] == pytest.approx(held_by_hand(linear, 0.1))


def test_restarts_are_tried_on_what_holds(linear: probes.Subject) -> None:
    base = params.Attack(family="pgd", steps=1, step_size=0.02)
    curve = list(probes.accuracy_by(linear, base, "restarts", [1, 3, 20]).values())
    assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0]


def test_random_search_finds_what_lies_within_the_reach_of_corners(linear: probes.Subject) -> None:
    few, many = (probes.random_search(linear, points) for points in (1, 200))
    assert (many >= few).all() and many.sum() > few.sum()
    assert 1 - many.mean() == pytest.approx(held_by_hand(linear, 0.1))  # of 16 corners, 100 draws find the worst


def test_a_linear_loss_has_gradients_that_agree_and_no_linearity_error(linear: probes.Subject) -> None:
    linear.model.head.weight.data *= 1e-3  # where the cross-entropy is nearly linear in the logits
    found = probes.gradients(linear)
    assert found["alignment"] == pytest.approx(1) and found["linearity_error"] < 1e-3 and found["zero_gradients"] == 0


def test_saturated_logits_have_zero_gradients_that_agree_with_nothing(linear: probes.Subject) -> None:
    linear.model.head.weight.data *= 1e4
    saturated = (linear.model(linear.examples.x).detach().diff(dim=1).abs() > 110).double().mean()
    found = probes.gradients(linear)
    assert found["zero_gradients"] == pytest.approx(float(saturated)) and saturated > 0.5
    assert found["alignment"] <= 1 - float(saturated) + 1e-6


def test_randomness_is_seen_and_ends_the_probe(linear: probes.Subject) -> None:
    assert probes.randomness(linear) == 0
    noisy = probes.Subject(defences.noisy(linear.model), linear.examples, linear.p)
    assert 0 < probes.randomness(noisy) < math.inf
    assert set(probes.probe(noisy)) == {"images", "randomness"}


@pytest.mark.usefixtures("untouched_random_state")
def test_a_probe_leaves_the_model_and_the_random_state_alone_and_comes_out_the_same(
    smoke: Params, make_model, make_examples
) -> None:
    model, images = make_model().train(), make_examples(20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (probes.probe(probes.Subject(model, images, smoke)) for _ in range(2))
    assert first == second and model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


# Checks

HEALTHY = {
    "images": 100,
    "index": list(range(100)),
    "randomness": 0.0,
    "single_step": 0.6,
    "steps": {"1": 0.9, "20": 0.5, "100": 0.51},
    "restarts": {"1": 0.5, "20": 0.45},
    "radii": {"0.5": 0.8, "1": 0.5, "8": 0.0},
    "random_search": [0, 1],
    "breaks": {"square": [0, 1, 2]},
    "zero_gradients": 0.0,
    "alignment": 0.8,
}
SQUARE = params.Attack(family="autoattack", steps=1, queries=1, parts=["square"])
ATTACKS = {
    "fgsm": params.Attack(family="fgsm"),
    "pgd-20": params.Attack(family="pgd", steps=20, step_size=0.1),
    "cw-30": params.Attack(family="cw", steps=30, step_size=0.1, confidence=50.0),
    "autoattack": params.Attack(family="autoattack", steps=1, queries=1),
}
BROKEN = {"natural": 2, "fgsm": 40, "pgd-20": 50, "cw-30": 55, "autoattack": 70}  # the first so many images


def table() -> Verdicts:
    none = np.zeros(100, np.float32)
    columns = {name: Column(np.arange(100) < count, none, none) for name, count in BROKEN.items()}
    return Verdicts.join(columns, np.zeros(100, np.int64), np.arange(100), "")


def judged(transferred: set[int] = frozenset(), **changes: Any) -> dict[str, dict[str, Any]]:
    return checks.judge(checks.evidence(HEALTHY | changes, ATTACKS, {"square": SQUARE}, table(), set(transferred)))


def failed(**changes: Any) -> list[str]:
    return [name for name, verdict in judged(**changes).items() if not verdict["passed"]]


def test_a_healthy_model_passes_every_check() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    "change, names",
    [
        ({"single_step": 0.49}, ["iterated"]),
        ({"single_step": 0.82}, ["single-step"]),
        ({"steps": {"1": 0.5, "20": 0.5, "100": 0.54}}, ["steps"]),
        ({"restarts": {"1": 0.5, "20": 0.39}}, ["restarts"]),
        ({"radii": {"1": 0.5, "8": 0.06}}, ["radius"]),
        ({"radii": {"1": 0.5, "2": 0.6, "8": 0.0}}, ["radius"]),
        ({"breaks": {"square": [0, 55, 56]}}, ["black-box"]),
        ({"transferred": {98, 99}}, ["black-box"]),
        ({"random_search": [0, 99]}, ["random-search"]),
        ({"zero_gradients": 0.06}, ["zero-gradients"]),
        ({"breaks": {"square": [], "apgd": list(range(50, 61))}}, ["losses"]),
        ({"alignment": 0.09}, ["alignment"]),
    ],
    ids=str,
)
def test_each_check_fails_beyond_its_threshold_and_no_other_does(change: dict[str, Any], names: list[str]) -> None:
    transferred = change.pop("transferred", frozenset())
    further = {"square": SQUARE, "apgd": SQUARE.model_copy(update={"parts": ["apgd-ce"]})}
    found = checks.judge(checks.evidence(HEALTHY | change, ATTACKS, further, table(), set(transferred)))
    assert [name for name, verdict in found.items() if not verdict["passed"]] == names


def test_autoattack_with_square_in_it_neither_excuses_nor_accuses() -> None:
    """What Square alone breaks inside AutoAttack (images 55 to 69) is not the work of a white box."""
    assert judged(breaks={"square": [60, 61]})["black-box"] == {"figure": 0.02, "passed": False, "examples": [60, 61]}
    assert judged()["losses"]["figure"] == 0.05  # cw-30 beyond pgd-20, not AutoAttack beyond it


def test_a_random_model_fails_one_check_and_the_others_are_not_measured() -> None:
    found = checks.judge(checks.evidence({"images": 5, "randomness": 0.1}, {}, {}, None, set()))
    assert found.pop("repeatable") == {"figure": 0.1, "passed": False}
    assert all(verdict == {"figure": None, "passed": None} for verdict in found.values())


def test_the_rise_of_a_curve_is_from_any_point_to_any_later_one() -> None:
    assert checks.rise({"1": 0.9, "2": 0.3, "3": 0.5, "4": 0.45}) == pytest.approx(0.2)
    assert checks.rise({"1": 0.9, "2": 0.3}) == 0


def test_every_check_says_what_it_asks_and_why() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(check.asks and len(check.reason) > 20 for check in checks.CHECKS)


# The report


def test_the_report_names_what_failed_with_figure_and_threshold() -> None:
    runs = {("at_pgd", 0): judged(), ("adt_exp", 1): judged(zero_gradients=0.5)}
    found = report.summary(runs, "warn")
    (line,) = found["failures"]
    assert line.startswith("adt_exp seed 1: zero-gradients: 0.5 (at most 0.05 passes)") and not found["healthy"]
    page = report.markdown(found, "# Health", 100)
    assert "1 of 22 checks failed" in page and "**0.5**" in page
    assert all(check.reason in page for check in checks.CHECKS)
    assert "adt_exp seed 1: zero-gradients: 0.5" in report.sentence(found)


def test_the_report_of_healthy_cells_says_so() -> None:
    found = report.summary({("at_pgd", 0): judged()}, "stop")
    assert found["healthy"] and found["failures"] == []
    assert "All checks passed" in report.markdown(found, "# Health", 100)
    assert "all 11 checks passed" in report.sentence(found)


# Defences, sound and broken


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """The default preset with less of everything that costs time, in a folder with its data."""
    p = params.parse(read_yaml(ROOT / "presets/digits.yaml"), "digits")
    weaker = {
        "apgd": p.health.attacks["apgd"].model_copy(update={"steps": 20}),
        "spsa": p.health.attacks["spsa"].model_copy(update={"steps": 15, "samples": 64, "step_size": 0.05}),
        "square": p.health.attacks["square"].model_copy(update={"queries": 300}),
    }
    small = {"images": 100, "steps": [1, 20], "restarts": [1, 5], "radii": [0.5, 1.0, 8.0], "random_points": 60}
    chosen = {name: p.evaluation.attacks[name] for name in ("fgsm", "pgd-20", "cw-30")}
    p = with_health(p, attacks=weaker, **small)
    p = p.model_copy(update={"evaluation": p.evaluation.model_copy(update={"attacks": chosen})})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("defences"))
        patch.setattr(cell, "digest_code", lambda *_: "code")
        store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)
        yield p


@pytest.fixture(scope="module")
def found(digits: Params) -> dict[str, Finding]:
    """What is found of every defence of the benchmark, one seed each."""
    test = load_split(Path("data/digits"), "test")
    one = digits.model_copy(update={"matrix": digits.matrix.model_copy(update={"seeds": [0]})})
    return {name: examine(model, test, p) for name, _, p, model in defences.subjects(one, CPU)}


@pytest.mark.parametrize("name", ["standard", "at_pgd", "trades"])
def test_sound_models_pass(found: dict[str, Finding], name: str) -> None:
    assert found[name].failed == []


def test_an_undefended_model_is_weak_but_hides_nothing(found: dict[str, Finding]) -> None:
    assert found["standard"].accuracies["worst-case"] < 0.05 < 0.5 < found["at_pgd"].accuracies["worst-case"]


@pytest.mark.parametrize(
    "name, check",
    [
        ("logits x 1e4", "zero-gradients"),
        ("rounded images", "zero-gradients"),
        ("rounded images", "black-box"),
        ("rounded images", "random-search"),
        ("noisy images", "repeatable"),
        ("leaking, eps 0.4", "single-step"),
    ],
)
def test_a_broken_defence_is_caught_by_the_check_meant_for_it(found: dict[str, Finding], name: str, check: str) -> None:
    assert check in found[name].failed


def test_feature_scatter_is_caught_by_another_loss(found: dict[str, Finding]) -> None:
    """It bends the cross-entropy: C&W and APGD's targeted loss break far more than PGD does."""
    scatter = found["feature_scatter"]
    assert "losses" in scatter.failed
    assert scatter.accuracies["pgd-20"] - scatter.accuracies["cw-30"] > 0.08


def test_a_defence_is_the_model_that_its_seed_gives(digits: Params) -> None:
    one, two = (defences.trained(digits, "standard", 0, CPU).state_dict() for _ in range(2))
    torch.testing.assert_close(dict(one), dict(two), rtol=0, atol=0)
    assert Cell(digits, "standard", 1).fingerprint() != Cell(digits, "standard", 0).fingerprint()
