"""Samples against PGD with restarts: what they cost, what is said of them, where they lie, and the stage itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import nn

from pipeline import cell, params
from pipeline.cell import Cell
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.errors import UserError
from pipeline.files import read_csv
from pipeline.models import architecture
from pipeline.models.weights import save_weights
from pipeline.perturbation import L2, Linf
from pipeline.plots import diversity as figure
from pipeline.samplers import Learned, Restarts, Uniform
from pipeline.seeding import Stream
from pipeline.studies.diversity import Judged
from pipeline.studies.exploration import MEASURES, differences, markdown, sentence, verdict
from pipeline.studies.projection import Plane, surface, window
from pipeline.studies.sample_budget import Price, counts, curve
from pipeline.yaml_files import read_yaml
from stages import diversity as stage

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


# Costs


def test_a_verdict_costs_half_a_gradient_evaluation() -> None:
    learned = Price.of(Learned(stage.samplers.Search(lam=0.0, steps=7, samples=5, inner_lr=0.3)))
    assert [price.total(10) for price in (learned, Price.of(Restarts(7, 0.1)), Price.of(Uniform()))] == [40, 75, 5]
    assert (learned.affordable(40), learned.affordable(40.4), learned.affordable(3)) == (10, 10, 1)
    assert Price.of(Restarts(7, 0.1)).affordable(150) == 20
    with pytest.raises(TypeError, match="no price"):
        Price.of(lambda *_: None)


def test_the_curve_is_the_best_of_the_first_samples() -> None:
    losses = torch.rand(4, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    judged = Judged(losses, losses > 0.9, torch.zeros(4, 23, dtype=torch.int64))
    points = curve(judged, Price(35, 0))
    assert [point["samples"] for point in points] == [1, 2, 3, 5, 7, 10, 20, 23] == counts(23)
    for point in points:
        n = point["samples"]
        assert point["loss"] == pytest.approx(np.mean([max(row[:n]) for row in losses.tolist()]))
        assert point["broken"] == np.mean([any(value > 0.9 for value in row[:n]) for row in losses.tolist()])
        assert (point["gradient_evaluations"], point["forward_passes"], point["cost"]) == (35, n, 35 + n / 2)


# Words


def rows(seeds: int, shift: dict[str, float], noise: float = 0.01) -> list[dict[str, Any]]:
    """PGD at 0.5 in everything, and a source that is shifted; seeds differ, and differ in their difference."""
    made = []
    for seed in range(seeds):
        for source in ("pgd", "adt_exp"):
            moved = {m: 0.5 + seed / 10 + (source != "pgd") * (shift.get(m, 0) + noise * (seed - 1)) for m in MEASURES}
            made.append({"model": "at_pgd", "source": source, "seed": seed} | moved)
    return made


BETTER = {"seen_diversity": 0.2, "seen_cosine": -0.2, "classes": 0.2}
WORSE = {measure: -value for measure, value in BETTER.items()}


@pytest.mark.parametrize(
    "seeds, shift, said",
    [
        (3, BETTER, "supported"),
        (
            3,
            {m: -value for m, value in BETTER.items()},
            "not supported; PGD with restarts explores better by all three",
        ),
        (3, {"seen_diversity": 0.2}, "not supported (better by 1, worse by 0, not told apart by 2 of the three)"),
        (3, BETTER | {"seen_cosine": 0.2}, "not supported (better by 2, worse by 1, not told apart by 0 of the three)"),
        (2, BETTER, "undecided (no interval)"),
    ],
)
def test_the_verdict_needs_every_interval_on_the_right_side(seeds: int, shift: dict[str, float], said: str) -> None:
    found = differences(rows(seeds, shift), 0.95)["at_pgd", "adt_exp"]
    assert verdict(found) == said
    assert f"is {said}:" in sentence("at_pgd", "adt_exp", found)


def test_differences_are_paired_and_shares_are_in_points() -> None:
    found = differences(rows(3, {"fooled": -0.2}), 0.95)["at_pgd", "adt_exp"]
    assert found["fooled"].mean == pytest.approx(-20)
    half = 4.30265 / 3**0.5  # t(0.975, 2), and a deviation of 1 over 3 seeds
    assert found["fooled"].interval == pytest.approx((-20 - half, -20 + half), rel=1e-5)
    text = markdown("digits", rows(3, {"fooled": -0.2}), 20, 100, 0.95, ["adt_imp_am"])
    assert "**-20 [-22.5, -17.5]**" in text and "fooled, % -20 [-22.5, -17.5] (less)" in text
    assert "does not train it: ADT_IMP-AM" in text
    assert "±" in text and "±" not in markdown("digits", rows(2, {}), 20, 100, 0.95, [])


# Planes


@pytest.mark.parametrize("perturbations", [Linf(0.2), L2(0.5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_plane_holds_what_lies_in_it_and_its_losses_are_those_of_points_of_the_set(
    perturbations, channels: int
) -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = torch.linalg.qr(torch.randn(16 * channels, 2, generator=rng, dtype=torch.float64))[0].T
    weights = torch.randn(12, 2, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 0.3])
    deltas = (weights @ torch.stack([first, second])).view(12, channels, 4, 4).float()
    plane = Plane.of(deltas)
    assert plane.share == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(plane.basis @ plane.basis.T, torch.eye(2, dtype=torch.float64))
    places = plane.coordinates(deltas)
    torch.testing.assert_close((places @ plane.basis).view_as(deltas).float(), deltas, rtol=1e-4, atol=1e-5)
    axes = window(places, perturbations.eps, 5)
    for line, values in zip(axes, places.T, strict=True):
        assert line[0] < min(0, values.min()) and line[-1] > max(0, values.max())
    assert float(axes[0, -1] - axes[0, 0]) == pytest.approx(float(axes[1, -1] - axes[1, 0]))
    x = torch.rand(channels, 4, 4, generator=rng)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 3)).requires_grad_(False)
    found = surface(model, x, torch.tensor(1), perturbations, plane, axes)
    for i, j in ((0, 0), (4, 1), (2, 3)):  # rows along the second direction
        delta = (axes[0, j] * plane.basis[0] + axes[1, i] * plane.basis[1]).view_as(x).float()
        norm = delta.abs().max() if isinstance(perturbations, Linf) else delta.norm()
        assert float(found.norm[i, j]) == pytest.approx(float(norm) / perturbations.eps, rel=1e-4)
        inside = (
            delta.clamp(-0.2, 0.2) if isinstance(perturbations, Linf) else delta * min(1, 0.5 / float(delta.norm()))
        )
        logits = model((x + inside).clamp(0, 1)[None])
        assert float(found.loss[i, j]) == pytest.approx(float(-logits.log_softmax(1)[0, 1]), rel=1e-4)
        rivals = max(float(logits[0, 0]), float(logits[0, 2]))
        assert float(found.margin[i, j]) == pytest.approx(float(logits[0, 1]) - rivals, abs=1e-5)


def test_a_window_of_nothing_is_one_radius_wide() -> None:
    assert window(torch.zeros(3, 2), 0.2, 3).tolist() == [pytest.approx([-0.2, 0, 0.2])] * 2


# Figures


def shown(sources: list[str], channels: int = 1, count: int = 2) -> dict[str, np.ndarray]:
    """What samples.npz holds, made of noise."""
    noise = Stream.of(0, "shown").at(torch.arange(count))
    size, s = 4, len(sources)
    deltas = 0.4 * (noise.uniform(s, 3, channels, size, size, draw=1).numpy() - 0.5)
    axis = np.tile(np.linspace(-1, 1, 5), (count, 2, 1))
    field = noise.uniform(5, 5, draw=2).numpy()
    fooled = noise.uniform(s, 3, draw=3).numpy() > 0.5
    return {
        "model": np.array("at_pgd"),
        "seed": np.array(0),
        "sources": np.array(sources),
        "eps": np.array(0.2),
        "images": noise.uniform(channels, size, size).numpy(),
        "labels": np.arange(count),
        "index": 100 + np.arange(count),
        "clean_predicted": np.arange(count),
        "deltas": deltas,
        "predicted": fooled + np.arange(count)[:, None, None],
        "fooled": fooled,
        "places": noise.uniform(s, 3, 2, draw=4).numpy(),
        "axes": axis,
        "surface": field,
        "surface_margin": field - 0.5,
        "surface_norm": 2 * field,
        "share": np.full(count, 0.8),
    }


def budget_rows(seeds: int) -> list[dict[str, Any]]:
    return [
        {"model": "at_pgd", "source": source, "seed": seed, "cost": cost, "loss": cost / 9 + seed / 7, "broken": 0.3}
        for source in ("pgd", "adt_exp")
        for seed in range(seeds)
        for cost in (1.0, 2.0)
    ]


FIGURES: dict[str, Callable[[Path], None]] = {
    "measures": lambda path: figure.measures("digits", rows(3, {}), ["at_pgd"], path),
    "measures of one seed on the sources' own classifiers": lambda path: figure.measures(
        "digits", rows(1, {}), [], path
    ),
    "budget": lambda path: figure.budget("digits", budget_rows(3), path),
    "budget of one seed": lambda path: figure.budget("digits", budget_rows(1), path),
    "projection": lambda path: figure.projection("digits", shown(["pgd", "adt_exp", "uniform"], count=5), path),
    "images": lambda path: figure.images("digits", shown(["pgd", "adt_exp_am", "uniform"]), path),
    "images in colour": lambda path: figure.images("digits", shown(["pgd"], channels=3, count=1), path),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_a_figure_is_a_png_with_the_same_bytes_every_time(draw: Callable[[Path], None], tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    draw(one)
    draw(two)
    assert one.read_bytes().startswith(b"\x89PNG") and one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".svg").read_bytes() == two.with_suffix(".svg").read_bytes()
    assert pyplot.get_fignums() == []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_the_image_grid_shows_what_the_model_sees_amplified_by_one_factor(drawn: list[Figure], tmp_path: Path) -> None:
    given = shown(["pgd", "uniform"])
    figure.images("digits", given, tmp_path / "figure.png")
    seen = np.clip(given["images"][:, None] + given["deltas"][:, :, 0], 0, 1) - given["images"][:, None]
    panels = np.array(drawn[0].axes).reshape(2, 5)
    factor = 0.5 / np.abs(seen).max()
    assert f"x {factor:.3g}" in drawn[0].get_suptitle()
    for n in range(2):
        for s in range(2):
            noise, result = panels[n, 1 + 2 * s : 3 + 2 * s]
            assert np.allclose(noise.images[0].get_array(), 0.5 + factor * seen[n, s, 0], atol=1e-6)
            assert np.allclose(result.images[0].get_array(), (given["images"][n] + seen[n, s])[0], atol=1e-6)
            assert result.get_xlabel() == str(given["predicted"][n, s, 0])
            assert (result.xaxis.label.get_fontweight() == "bold") == given["fooled"][n, s, 0]
            assert {axes.images[0].get_clim() for axes in (noise, result)} == {(0, 1)}
            assert noise.images[0].get_interpolation() == "nearest"


def test_the_projection_fills_the_markers_of_samples_that_fool(drawn: list[Figure], tmp_path: Path) -> None:
    given = shown(["pgd", "adt_exp"], count=1)
    figure.projection("digits", given, tmp_path / "figure.png")
    clouds = [c for c in drawn[0].axes[0].collections if c.get_offsets().shape == (3, 2) and len(c.get_sizes())]
    for cloud, places, fooled in zip(clouds, given["places"][0], given["fooled"][0], strict=True):
        assert np.allclose(cloud.get_offsets(), places / 0.2)
        assert [face[3] == 1 for face in cloud.get_facecolors()] == fooled.tolist()


# The stage


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., params.Params]:
    """Runs the stage on untrained models of the smoke preset, with changes; code of the project is a constant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.machine, "prepare", lambda runtime: CPU)
    for module in (stage, cell):
        monkeypatch.setattr(module, "digest_code", lambda *_: "code")
    for name in ("measures", "budget", "projection", "images"):
        monkeypatch.setattr(stage.figure, name, lambda *_: None)

    def run(methods: list[str], **changes: Any) -> params.Params:
        values = read_yaml(ROOT / "presets/smoke.yaml")
        values["matrix"] = {"methods": methods, "seeds": [0]}
        values["threat"] |= changes.pop("threat", {})
        values["diversity"] |= changes
        p = params.parse(values, "smoke")
        if not Path("data").exists():
            store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)
        for place, method in enumerate(methods):
            folder = Path("runs") / method / "seed-0"
            model, adversary, _ = Cell(p, method, place).build(CPU)
            save_weights(folder / "model.safetensors", model.state_dict(), architecture(p.model))
            save_weights(folder / "adversary.safetensors", adversary.state_dict())
        monkeypatch.setattr(stage.params, "load", lambda: p)
        stage.main()
        return p

    return run


ALL = ["at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am"]
RESULTS = Path("results/diversity")


def pairs() -> list[tuple[str, str]]:
    return [(row["model"], row["source"]) for row in read_csv(RESULTS / "diversity.csv")]


def test_every_source_attacks_the_common_model_and_each_its_own(work) -> None:
    p = work(ALL)
    common = [("at_pgd", source) for source in ("pgd", "adt_exp", "adt_exp_am", "adt_imp_am", "uniform")]
    own = [(method, source) for method in ALL[1:] for source in ("pgd", method, "uniform")]
    assert pairs() == common + own
    price = 2.5 * p.diversity.restarts  # two steps and a verdict
    costs = {row["source"]: float(row["cost"]) for row in read_csv(RESULTS / "budget.csv")}
    assert costs == {"pgd": price, "adt_exp": price, "uniform": price}
    with np.load(RESULTS / "samples.npz") as arrays:
        assert arrays["deltas"].shape == (2, 5, 3, 1, 8, 8)
        seen = np.clip(arrays["images"][:, None, None] + arrays["deltas"], 0, 1) - arrays["images"][:, None, None]
        places = np.einsum("nsdchw,npchw->nsdp", seen, arrays["basis"].reshape(2, 2, 1, 8, 8))
        assert np.allclose(places, arrays["places"], atol=1e-5)
        assert arrays["surface"].shape == (2, 5, 5)


def test_what_the_matrix_does_not_train_is_left_out_and_said(work) -> None:
    work(["at_pgd", "adt_exp_am"])
    assert {source for _, source in pairs()} == {"pgd", "adt_exp", "adt_exp_am", "uniform"}
    assert "does not train it: ADT_IMP-AM" in (RESULTS / "diversity.md").read_text()


def test_the_stage_repeats_nothing_that_is_finished_and_ends_with_the_same_bytes(work, monkeypatch) -> None:
    describe, calls = stage.describe, []

    def killed(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return describe(*arguments)

    monkeypatch.setattr(stage, "describe", killed)
    with pytest.raises(KeyboardInterrupt):
        work(["at_pgd", "adt_exp"])
    resumed = []
    monkeypatch.setattr(stage, "describe", lambda *given: resumed.append(given) or describe(*given))
    work(["at_pgd", "adt_exp"])
    assert len(resumed) == len(pairs()) - 3
    files = {path: path.read_bytes() for path in RESULTS.iterdir()}
    monkeypatch.setattr(stage, "describe", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(stage, "drawn", lambda *_: pytest.fail("followed again"))
    work(["at_pgd", "adt_exp"])
    assert {path: path.read_bytes() for path in files} == files


def test_the_stage_works_in_l2(work) -> None:
    work(ALL, threat={"set": "l2", "eps": 0.8})
    assert len(pairs()) == 14


def test_the_stage_works_in_a_set_of_the_users_own(work, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "halved.py").write_text(
        "from pipeline.perturbation import Linf\n\n\n"
        "class Halved(Linf):\n    def __init__(self, eps):\n        super().__init__(eps / 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work(ALL, threat={"set": "halved:Halved", "eps": 0.2})
    with np.load(RESULTS / "samples.npz") as arrays:
        assert 0.09 < np.abs(arrays["deltas"]).max() <= 0.1 * (1 + 1e-6)


def test_an_image_that_is_not_there_cannot_be_drawn(work) -> None:
    with pytest.raises(UserError, match=r"diversity.shown: should be below the number of test images \(100; got 150\)"):
        work(["at_pgd"], images=200, shown=[150])
    assert not RESULTS.exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"shown": [0, 8]}, "diversity: shown: should be below images (8; got 8)"),
        ({"shown": [1, 1]}, "diversity: shown must be distinct"),
        ({"models": ["trades"]}, "diversity.models: 'trades' is not one of matrix.methods (at_pgd"),
        ({"samples": 1}, "diversity.samples: input should be greater than or equal to 2"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    values = read_yaml(ROOT / "presets/smoke.yaml")
    values["diversity"] |= change
    with pytest.raises(UserError) as caught:
        params.parse(values, "smoke")
    assert said in str(caught.value)
