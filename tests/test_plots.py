"""Figures: PNG files that are byte-identical for equal input and show the numbers given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from pipeline.plots import ablation, comparison, degeneracy, health, landscape, transfer


def comparison_table(seeds: int) -> dict:
    runs = {str(seed): 50.0 + seed for seed in range(seeds)}
    summary = {"mean": 51.0, "std": 1.5 if seeds >= 3 else None, "runs": runs}
    names = ("at_pgd", "a_method_of_mine")
    methods = {method: {"natural": summary, "pgd-20": summary} for method in names}
    table = {"metrics": ["natural", "pgd-20"], "methods": methods, "seeds": list(range(seeds)), "test_examples": 500}
    table["data"] = DATA
    costs = {method: dict.fromkeys(runs, 1000 * (place + 1)) for place, method in enumerate(names)}
    return table | {"gradient_evaluations": costs}


def tradeoff_table(seeds: int) -> dict:
    """Robust accuracies from 40, natural ones from 50."""
    table = comparison_table(seeds)
    worst = {"runs": {str(seed): 40.0 + 2 * seed for seed in range(seeds)}}
    return table | {"methods": {m: {**summary, "worst-case": worst} for m, summary in table["methods"].items()}}


def histories(epochs: int) -> dict:
    rows = [
        {"epoch": str(e), "val_natural": str(0.5 + e / 100), "val_robust": str(e / 100)} for e in range(1, epochs + 1)
    ]
    return {"at_pgd": {0: rows, 3: rows[: max(1, epochs - 1)]}, "adt_exp": {0: rows}}


SELECTED = {"at_pgd": {"0": 1, "3": 1}, "adt_exp": {"0": 1}}


def ablation_rows(lams: list[float], methods: tuple[str, ...] = ("adt_exp",), seeds: int = 2) -> list[dict[str, Any]]:
    """As in lambda.csv; ADT_IMP-AM has two thresholds, no entropy, and no code length at lambda 0."""
    rows = [
        {"method": "at_pgd", "lam": None, "tau": None, "seed": s, "pgd-20": 0.6, "worst-case": 0.5 + s / 10}
        for s in range(seeds)
    ]
    names = ("natural", "pgd-20", "worst-case", "diversity", "adversarial_loss", "entropy", "code_length")
    for method in methods:
        implicit = method == "adt_imp_am"
        for lam in lams:
            for tau in (0.5, 0.86) if implicit and lam else (None,):
                undefined = {"entropy"} | (set() if lam else {"code_length"}) if implicit else {"code_length"}
                rows += [
                    {"method": method, "lam": lam, "tau": tau, "seed": seed}
                    | {name: None if name in undefined else 0.5 + lam / 9 + seed / 7 for name in names}
                    for seed in range(seeds)
                ]
    return rows


def width_rows(lams: list[float]) -> list[dict[str, float]]:
    return [
        {"seed": seed, "lam": lam, "steps": steps, "deviation": 0.1 + lam / 9, "loss": 0.3 + seed / 9, "pgd_loss": 0.9}
        for seed in (0, 1)
        for lam in lams
        for steps in (1, 7)
    ]


def twins(seeds: int) -> list[dict[str, float | str]]:
    values = {"natural": 0.98, "pgd-20": 0.6, "worst-case": 0.5}
    return [{"method": method, "seed": seed} | values for method in ("at_pgd", "adt_exp") for seed in range(seeds)]


def surface(height: float) -> np.ndarray:
    axis = np.linspace(-2, 2, 5)
    return height * (axis[:, None] ** 2 + np.abs(axis[None, :]))


DATA = "CIFAR-10 (JPEG)"
AXIS = np.linspace(-2, 2, 5)
MANY = ["at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am", "a_method_of_mine"]
SHOWN = landscape.Shown(np.linspace(0, 1, 2 * 16).reshape(2, 1, 4, 4), [3, 8], [10, 1203])


def surfaces(methods: list[str], seeds: int, height: float = 1.0) -> dict[str, np.ndarray]:
    """Losses (seeds, 2, 5, 5) that fall from method to method and differ by a tenth of the height from seed to seed."""
    return {
        method: np.stack([[surface(height / (place + 1)) + height * seed / 10] * 2 for seed in range(seeds)])
        for place, method in enumerate(methods)
    }


def of_images(methods: list[str]) -> dict[str, np.ndarray]:
    return {method: losses[0] * np.array([1, 2])[:, None, None] for method, losses in surfaces(methods, 1).items()}


def curvature_rows(methods: list[str], seeds: int) -> list[dict]:
    return [
        {"method": method, "seed": seed, "images": 9} | {name: place + seed / 10 + 1 for name in landscape.PANELS}
        for place, method in enumerate(methods)
        for seed in range(seeds)
    ]


def crossings(methods: list[str]) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Accuracies of an attack of every model on every other, and of the generators of the last method's."""
    cells = [f"{method}-{seed}" for method in methods for seed in (0, 3)]
    accuracies = 40 + np.arange(2.0 * len(cells) ** 2).reshape(2, len(cells), len(cells)) % 37
    accuracies[1, :-2] = np.nan
    return accuracies, ["pgd-20", "generator"], cells, cells


FIGURES: dict[str, Callable[[Path], None]] = {
    "health": lambda path: health.draw(RADII, checks(False), path),
    "health of healthy runs": lambda path: health.draw(RADII, checks(True), path),
    "health, not measured": lambda path: health.draw({("adt_exp", 0): {}, ("adt_exp", 1): {}}, checks(None), path),
    "comparison": lambda path: comparison.accuracies(comparison_table(3), path),
    "comparison of one seed": lambda path: comparison.accuracies(comparison_table(1), path),
    "tradeoff": lambda path: comparison.tradeoff(tradeoff_table(3), path),
    "tradeoff of one seed": lambda path: comparison.tradeoff(tradeoff_table(1), path),
    "curves": lambda path: comparison.curves(histories(4), SELECTED, path),
    "curves of one epoch": lambda path: comparison.curves(histories(1), SELECTED, path),
    "ablation": lambda path: ablation.draw("digits", ablation_rows([0.0, 0.01, 10.0]), "pgd-20", path),
    "ablation of three methods": lambda path: ablation.draw(
        "digits", ablation_rows([0.0, 1e-4, 10.0], ("adt_exp", "adt_exp_am", "adt_imp_am"), 3), "pgd-20", path
    ),
    "degeneracy": lambda path: degeneracy.draw("digits", width_rows([0.0, 1.0]), twins(2), "pgd-20", 7, path),
    "degeneracy of one lambda": lambda path: degeneracy.draw("digits", width_rows([0.0]), twins(1), "pgd-20", 7, path),
    "landscape": lambda path: landscape.draw(DATA, AXIS, surfaces(["at_pgd", "adt_exp"], 3), [0, 1, 5], False, path),
    "landscape of one method": lambda path: landscape.draw(DATA, AXIS, surfaces(["at_pgd"], 1, 1e-4), [7], True, path),
    "landscape of many methods": lambda path: landscape.draw(DATA, AXIS, surfaces(MANY, 2), [0, 1], True, path),
    "surfaces in space": lambda path: landscape.draw_in_space(
        DATA, AXIS, surfaces(MANY[:3], 3), [0, 1, 5], False, path
    ),
    "landscapes of images": lambda path: landscape.draw_images(DATA, AXIS, of_images(MANY[:2]), SHOWN, 0, False, path),
    "curvature": lambda path: landscape.draw_curvature(DATA, curvature_rows(MANY, 3), path),
    "curvature of one model": lambda path: landscape.draw_curvature(DATA, curvature_rows(["at_pgd"], 1), path),
    "transfer": lambda path: transfer.draw("digits", *crossings(["at_pgd", "adt_exp_am"]), path),
    "transfer of many models": lambda path: transfer.draw(
        "digits", *crossings([f"method_{n}" for n in range(9)]), path
    ),
    "transfer of one model": lambda path: transfer.draw(
        "digits", np.full((1, 1, 1), 50.0), ["pgd-20"], ["mine-0"], ["mine-0"], path
    ),
}


def checks(passed: bool | None) -> dict:
    """What health.json says of two runs of a method, in whose one check the second one is as given."""
    verdicts = [{"figure": 0.25, "passed": True}, {"figure": None if passed is None else 0.5, "passed": passed}]
    cells = {"adt_exp": {str(seed): {"steps": verdict} for seed, verdict in enumerate(verdicts)}}
    return {"checks": {"steps": {"passes": "at most 0.3"}}, "cells": cells}


RADII = {("adt_exp", seed): {"0.5": 0.9, "1": 0.4 - seed / 10, "8": 0.0} for seed in (0, 1)}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_a_figure_is_a_png_with_the_same_bytes_every_time(draw: Callable[[Path], None], tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "folder" / "two.png"
    draw(one)
    draw(two)
    assert one.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert one.read_bytes() == two.read_bytes()
    assert pyplot.get_fignums() == []


def test_different_numbers_give_different_figures(tmp_path: Path) -> None:
    for name, height in (("one.png", 1.0), ("two.png", 2.0)):
        landscape.draw(DATA, AXIS, surfaces(["at_pgd"], 1, height), [0], False, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_the_comparison_names_methods_and_metrics_and_shows_every_run(drawn: list[Figure], tmp_path: Path) -> None:
    comparison.accuracies(comparison_table(3), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["natural", "pgd-20"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["AT_PGD", "a_method_of_mine"]
    dots = [line.get_ydata().tolist() for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == [[50, 51, 52]] * 4
    assert "500" in axes.get_ylabel() and "standard deviation" in axes.get_title()


def test_one_run_is_not_said_to_have_a_deviation(drawn: list[Figure], tmp_path: Path) -> None:
    comparison.accuracies(comparison_table(1), tmp_path / "figure.png")
    assert "deviation" not in drawn[0].axes[0].get_title()


def test_the_tradeoff_has_a_point_a_run_and_one_for_their_mean(drawn: list[Figure], tmp_path: Path) -> None:
    comparison.tradeoff(tradeoff_table(3), tmp_path / "figure.png")
    points = [[list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()] for axes in drawn[0].axes]
    cost, natural = points
    assert cost[:2] == [[(1000, 40), (1000, 42), (1000, 44)], [(1000, 42)]]
    assert cost[2:] == [[(2000, 40), (2000, 42), (2000, 44)], [(2000, 42)]]
    assert natural[:2] == [[(50, 40), (51, 42), (52, 44)], [(51, 42)]]
    assert drawn[0].axes[0].get_xscale() == "log"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["AT_PGD", "a_method_of_mine"]


def test_curves_ring_the_selected_epoch(drawn: list[Figure], tmp_path: Path) -> None:
    comparison.curves(histories(4), {"at_pgd": {"0": 3, "3": 2}, "adt_exp": {"0": 4}}, tmp_path / "figure.png")
    rings = [
        [(line.get_xdata()[0], round(line.get_ydata()[0], 6)) for line in axes.get_lines() if line.get_marker() == "o"]
        for axes in drawn[0].axes
    ]
    assert rings == [[(3, 53), (3, 3), (2, 52), (2, 2)], [(4, 54), (4, 4)]]


def test_the_ablation_draws_means_over_seeds_in_the_order_of_lambda(drawn: list[Figure], tmp_path: Path) -> None:
    ablation.draw("digits", ablation_rows([10.0, 0.0, 1e-4]), "pgd-20", tmp_path / "figure.png")
    accuracy, breadth, loss, variety = drawn[0].axes
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["0", "1e-4", "10"]
    means = [0.5 + lam / 9 + 1 / 14 for lam in (0.0, 1e-4, 10.0)]
    for axes in (loss, breadth, variety):
        assert axes.get_lines()[0].get_ydata() == pytest.approx(means)
    bands = [line.get_ydata()[0] for line in accuracy.get_lines()[:2]]
    assert bands == pytest.approx([60, 55])
    assert "2 seeds" in drawn[0].get_suptitle() and "deviation" not in drawn[0].get_suptitle()


def test_the_ablation_has_a_line_of_panels_a_method_and_a_curve_a_threshold(
    drawn: list[Figure], tmp_path: Path
) -> None:
    rows = ablation_rows([0.0, 1.0, 10.0], ("adt_exp", "adt_imp_am"), 3)
    ablation.draw("digits", rows, "pgd-20", tmp_path / "figure.png")
    panels = drawn[0].axes[:6]
    assert [axes.get_ylabel().split(":")[0] for axes in panels[::3]] == ["ADT_EXP", "ADT_IMP-AM"]
    assert panels[1].get_ylabel().startswith("entropy") and panels[4].get_ylabel().startswith("code length")
    said = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert said == ["pgd-20", "worst-case", "AT_PGD", "tau 0.5", "tau 0.86"]
    curves = [
        line.get_xdata() for line in panels[4].get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) > 1
    ]
    assert [[round(x) for x in curve] for curve in curves] == [[1, 2], [1, 2]], "no code length at lambda 0"
    colours = {line.get_color() for line in panels[5].get_lines() if line.get_marker() != "."}
    assert len(colours) == 2
    assert "deviation" in drawn[0].get_suptitle()


def test_landscapes_share_one_scale_that_holds_every_loss(drawn: list[Figure], tmp_path: Path) -> None:
    losses = surfaces(["at_pgd", "adt_exp"], 3)
    landscape.draw(DATA, AXIS, losses, [0, 1, 5], False, tmp_path / "figure.png")
    first, second = (axes.collections[0].levels for axes in drawn[0].axes[:2])
    assert np.array_equal(first, second)
    assert first[0] <= 0 and first[-1] >= losses["at_pgd"].mean((0, 1)).max()
    titles = [axes.get_title() for axes in drawn[0].axes[:2]]
    assert titles == [f"{name}\nseeds deviate by 0.1 at most" for name in ("AT_PGD", "ADT_EXP")]
    assert "2 test images and seeds 0, 1, 5; points not clipped" in drawn[0].get_suptitle()
    assert DATA in drawn[0].get_suptitle()


def test_landscapes_in_space_have_equal_axes_and_colours(drawn: list[Figure], tmp_path: Path) -> None:
    landscape.draw_in_space(DATA, AXIS, surfaces(MANY[:3], 1), [4], True, tmp_path / "figure.png")
    panels = drawn[0].axes[:3]
    assert [axes.get_title() for axes in panels] == ["AT_PGD", "ADT_EXP", "ADT_EXP-AM"], "one seed has no deviation"
    assert len({axes.get_zlim() for axes in panels}) == 1
    assert len({axes.collections[0].get_clim() for axes in panels}) == 1
    assert drawn[0].get_suptitle() == f"Mean over 2 test images and seed 4; points clipped to [0, 1]\n{DATA}"


def test_images_are_named_and_stand_beside_their_landscapes(drawn: list[Figure], tmp_path: Path) -> None:
    landscape.draw_images(DATA, AXIS, of_images(MANY[:2]), SHOWN, 0, False, tmp_path / "figure.png")
    panels = np.array(drawn[0].axes[:6]).reshape(2, 3)
    assert [axes.get_title() for axes in panels[:, 0]] == ["image 10, label 3", "image 1203, label 8"]
    assert [axes.get_title() for axes in panels[0, 1:]] == ["AT_PGD", "ADT_EXP"]
    assert np.array_equal(panels[1, 0].images[0].get_array(), SHOWN.pixels[1, 0])
    assert len({tuple(axes.collections[0].levels) for axes in panels[:, 1:].flat}) == 1


def test_curvature_has_a_dot_a_seed_and_a_bar_from_three_on(drawn: list[Figure], tmp_path: Path) -> None:
    for seeds in (2, 3):
        landscape.draw_curvature(DATA, curvature_rows(["at_pgd", "adt_exp"], seeds), tmp_path / "figure.png")
    few, enough = drawn[::2]  # each is saved as PNG and SVG
    assert "deviation" not in few.get_suptitle() and "deviation" in enough.get_suptitle()
    for axes in enough.axes:
        dots = [line.get_ydata().tolist() for line in axes.get_lines() if line.get_marker() == "."]
        assert dots == [pytest.approx([1, 1.1, 1.2]), pytest.approx([2, 2.1, 2.2])]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["AT_PGD", "ADT_EXP"]


def test_the_maps_of_transfer_share_one_scale_and_frame_a_model_under_its_own_attack(
    drawn: list[Figure], tmp_path: Path
) -> None:
    accuracies, attacks, sources, targets = crossings(["at_pgd", "adt_exp_am"])
    transfer.draw("digits", accuracies, attacks, sources, targets, tmp_path / "figure.png")
    maps = drawn[0].axes[:2]
    assert [axes.get_title() for axes in maps] == attacks
    assert [tick.get_text() for tick in maps[0].get_xticklabels()] == [
        "AT_PGD 0",
        "AT_PGD 3",
        "ADT_EXP-AM 0",
        "ADT_EXP-AM 3",
    ]
    assert [tick.get_text() for tick in maps[1].get_yticklabels()] == ["ADT_EXP-AM 0", "ADT_EXP-AM 3"]
    for axes, values in zip(maps, (accuracies[0], accuracies[1, 2:]), strict=True):
        assert axes.images[0].get_clim() == (np.nanmin(accuracies), np.nanmax(accuracies))
        assert np.array_equal(axes.images[0].get_array(), values)
        assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for value in values.flat]
    centres = [[tuple(np.round(patch.get_center(), 6)) for patch in axes.patches] for axes in maps]
    assert centres == [[(0, 0), (1, 1), (2, 2), (3, 3)], [(2, 0), (3, 1)]]


def test_the_maps_of_many_models_have_no_numbers(drawn: list[Figure], tmp_path: Path) -> None:
    transfer.draw("digits", *crossings([f"method_{n}" for n in range(9)]), tmp_path / "figure.png")
    assert not drawn[0].axes[0].texts


@pytest.mark.parametrize("passed, said", [(True, "0.5"), (False, "0.5"), (None, "?")])
def test_a_check_that_fails_or_is_unknown_stands_out_from_one_that_passes(
    passed: bool | None, said: str, drawn: list[Figure], tmp_path: Path
) -> None:
    health.draw(RADII, checks(passed), tmp_path / "figure.png")
    curves, table = drawn[0].axes
    shades = np.asarray(table.images[0].get_array())
    assert np.array_equal(shades[0, 0], [1.0, 1.0, 1.0]) and shades.dtype.kind == "f"
    assert np.array_equal(shades[1, 0], shades[0, 0]) == (passed is True)
    assert [text.get_text() for text in table.texts] == ["0.25", said]
    assert [pytest.approx(line.get_ydata()) for line in curves.get_lines()] == [[90, 40, 0], [90, 30, 0]]
    assert "\u2264 0.3" in table.get_xticklabels()[0].get_text()
