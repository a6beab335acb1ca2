"""Figures: PNG files that are byte-identical for equal input and show the numbers given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from pipeline import plots


def comparison_table(seeds: int) -> dict:
    runs = {str(seed): 50.0 + seed for seed in range(seeds)}
    summary = {"mean": 51.0, "std": 1.5 if seeds >= 3 else None, "runs": runs}
    methods = {method: {"natural": summary, "pgd-20": summary} for method in ("at_pgd", "a_method_of_mine")}
    return {"metrics": ["natural", "pgd-20"], "methods": methods, "seeds": list(range(seeds)), "test_examples": 500}


def histories(epochs: int) -> dict:
    rows = [
        {"epoch": str(e), "val_natural": str(0.5 + e / 100), "val_robust": str(e / 100)} for e in range(1, epochs + 1)
    ]
    return {"at_pgd": {0: rows, 3: rows[: max(1, epochs - 1)]}, "adt_exp": {0: rows}}


SELECTED = {"at_pgd": {"0": 1, "3": 1}, "adt_exp": {"0": 1}}


def ablation_rows(lams: list[float]) -> list[dict[str, float]]:
    names = ("natural", "pgd-20", "worst-case", "entropy", "diversity", "adversarial_loss")
    return [
        {"lam": lam, "seed": seed} | dict.fromkeys(names, 0.5 + lam / 9 + seed / 7) for lam in lams for seed in (0, 1)
    ]


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


FIGURES: dict[str, Callable[[Path], None]] = {
    "comparison": lambda path: plots.comparison(comparison_table(3), path),
    "comparison of one seed": lambda path: plots.comparison(comparison_table(1), path),
    "curves": lambda path: plots.curves(histories(4), SELECTED, path),
    "curves of one epoch": lambda path: plots.curves(histories(1), SELECTED, path),
    "ablation": lambda path: plots.ablation(ablation_rows([0.0, 0.01, 10.0]), "pgd-20", path),
    "ablation of one lambda": lambda path: plots.ablation(ablation_rows([0.0]), "pgd-20", path),
    "degeneracy": lambda path: plots.degeneracy(width_rows([0.0, 1.0]), twins(2), "pgd-20", 7, path),
    "degeneracy of one lambda": lambda path: plots.degeneracy(width_rows([0.0]), twins(1), "pgd-20", 7, path),
    "landscape": lambda path: plots.landscape(
        np.linspace(-2, 2, 5), {"at_pgd": surface(1.0), "adt_exp": surface(0.5)}, 50, 0, path
    ),
    "landscape of one method": lambda path: plots.landscape(
        np.linspace(-2, 2, 5), {"at_pgd": surface(1e-4)}, 1, 7, path
    ),
}


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
        plots.landscape(np.linspace(-2, 2, 5), {"at_pgd": surface(height)}, 50, 0, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_the_comparison_names_methods_and_metrics_and_shows_every_run(drawn: list[Figure], tmp_path: Path) -> None:
    plots.comparison(comparison_table(3), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["natural", "pgd-20"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["AT_PGD", "a_method_of_mine"]
    dots = [line.get_ydata().tolist() for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == [[50, 51, 52]] * 4
    assert "500" in axes.get_ylabel() and "standard deviation" in axes.get_title()


def test_one_run_is_not_said_to_have_a_deviation(drawn: list[Figure], tmp_path: Path) -> None:
    plots.comparison(comparison_table(1), tmp_path / "figure.png")
    assert "deviation" not in drawn[0].axes[0].get_title()


def test_curves_ring_the_selected_epoch(drawn: list[Figure], tmp_path: Path) -> None:
    plots.curves(histories(4), {"at_pgd": {"0": 3, "3": 2}, "adt_exp": {"0": 4}}, tmp_path / "figure.png")
    rings = [
        [(line.get_xdata()[0], round(line.get_ydata()[0], 6)) for line in axes.get_lines() if line.get_marker() == "o"]
        for axes in drawn[0].axes
    ]
    assert rings == [[(3, 53), (3, 3), (2, 52), (2, 2)], [(4, 54), (4, 4)]]


def test_the_ablation_draws_means_over_seeds_in_the_order_of_lambda(drawn: list[Figure], tmp_path: Path) -> None:
    plots.ablation(ablation_rows([10.0, 0.0]), "pgd-20", tmp_path / "figure.png")
    loss = drawn[0].axes[2]
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["0", "10"]
    assert loss.get_lines()[0].get_ydata() == pytest.approx([0.5 + 1 / 14, 0.5 + 10 / 9 + 1 / 14])
    assert "2 seeds" in drawn[0].get_suptitle()


def test_landscapes_share_one_scale_that_holds_every_loss(drawn: list[Figure], tmp_path: Path) -> None:
    surfaces = {"at_pgd": surface(1.0), "adt_exp": surface(0.5)}
    plots.landscape(np.linspace(-2, 2, 5), surfaces, 50, 0, tmp_path / "figure.png")
    first, second = (axes.collections[0].levels for axes in drawn[0].axes[:2])
    assert np.array_equal(first, second)
    assert first[0] <= 0 and first[-1] >= surfaces["at_pgd"].max()
    assert [axes.get_title() for axes in drawn[0].axes[:2]] == ["AT_PGD", "ADT_EXP"]
