"""Every preset: what it is held against, what it costs, and all of its stages on images of its shape.

The stages run on a few random images with everything that is only a size made small, and with a narrow network of
the preset's own family; the family itself is built at its real size without weights.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.cost import SOURCES, Estimate
from pipeline import models, params, presets
from pipeline.adversaries.profiles import resolve
from pipeline.data import store
from pipeline.data.store import Arrays
from pipeline.files import read_csv, read_json, write_bytes
from pipeline.models.resnet import PreActResNet18
from pipeline.models.wide_resnet import WideResNet
from pipeline.params import Params
from pipeline.training.schedules import rate
from pipeline.verdicts import Verdicts
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
PAPER = ("cifar10-table-b", "cifar100", "svhn")
TABLES = ("cifar10-table-a", *PAPER)
NEW = (*TABLES, "cifar10-resnet18", "cifar10-jpeg-resnet18", "fashion-mnist")
SHAPES = {name: shape for name, (shape, *_) in SOURCES.items()} | {"fashion-mnist": (1, 28, 28), "digits": (1, 8, 8)}
CLASSES = {"cifar100": 100}
METHODS = ("at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am")
STAGES = {
    "transfer": "results/transfer/transfer.csv",
    "health": "results/health.md",
    "compare": "results/comparison.md",
    "ablation": "results/ablation/lambda.csv",
    "claims": "results/ablation/claims.md",
    "degeneracy": "results/degeneracy/accuracy.csv",
    "search": "results/search/trials.csv",
    "landscape": "results/landscape/curvature.csv",
    "diversity": "results/diversity/diversity.csv",
    "report": "results/report.html",
}
# Only sizes; the health gate, which these models cannot pass; and the device.
SMALL = {
    "train.epochs": 1,
    "train.batch_size": 20,
    "train.selection.steps": 1,
    "methods.at_pgd.steps": 1,
    "methods.adt_exp.steps": 1,
    "methods.adt_exp.samples": 2,
    "methods.adt_exp_am.width": 4,
    "methods.adt_imp_am.width": 4,
    "methods.adt_imp_am.latent": 4,
    "methods.adt_imp_am.encoder_width": 2,
    "matrix.seeds": [0],
    "transfer.draws": 1,
    "health.gate": "warn",
    "health.images": 4,
    "health.steps": [1, 2],
    "health.restarts": [1, 2],
    "health.radii": [1.0, 8.0],
    "health.random_points": 2,
    "landscape.images": 2,
    "landscape.shown": 1,
    "landscape.points": 3,
    "landscape.curvature.images": 2,
    "landscape.curvature.iterations": 2,
    "landscape.curvature.restarts": 1,
    "landscape.curvature.steps": 1,
    "ablation.grids.quick.adt_exp.lam": [0, 0.01],
    "ablation.seeds": [0],
    "ablation.epochs": 1,
    "ablation.samples": 2,
    "search.trials": 2,
    "search.startup": 1,
    "search.space.epochs": {"low": 1, "high": 1},
    "search.space.steps": {"low": 1, "high": 1},
    "search.space.samples": {"low": 1, "high": 2},
    "degeneracy.seeds": [0],
    "degeneracy.images": 4,
    "degeneracy.lams": [0, 0.01],
    "degeneracy.steps": [1, 2],
    "degeneracy.samples": 2,
    "diversity.images": 4,
    "diversity.samples": 2,
    "diversity.restarts": 2,
    "diversity.shown": [0, 1],
    "diversity.points": 3,
    "comparison.resamples": 100,
    "runtime.device": "cpu",
    "runtime.threads": 1,
}
WEAK = {"steps": 1, "queries": 2, "targets": 2, "samples": 2, "draws": 2}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets are found from the project's folder."""
    monkeypatch.chdir(ROOT)


# What stands in them


@pytest.mark.parametrize("name", NEW)
def test_every_value_of_our_own_is_marked_and_every_preset_says_what_it_costs(name: str) -> None:
    text = (ROOT / f"presets/{name}.yaml").read_text()
    assert "# ours" in text and presets.cost(name) and "# Held against: " in text
    assert "released" in text


@pytest.mark.parametrize("name", [name for name in NEW if name != "fashion-mnist"])
def test_the_cost_is_the_estimate_from_the_arithmetic(name: str) -> None:
    assert presets.cost(name) == Estimate(presets.load(name)).cost().said()


@pytest.mark.parametrize("name", TABLES)
def test_the_released_hyper_parameters(name: str) -> None:
    """Of adt_exp.py, adt_expam.py and adt_impam.py, switches included."""
    p = presets.load(name)
    exp, exp_am, imp_am = (resolve(m, p.method(m)) for m in METHODS[1:])
    assert (exp.lam, exp.steps, exp.samples, exp.inner_lr) == (0.01, 7, 5, 0.3)
    assert (exp.initial_rho, exp.accumulate, exp.outer_samples) == (0.0, True, 1)
    assert (exp_am.lam, exp_am.width, exp_am.generator_lr, exp_am.gradient_input) == (0.01, 256, 2e-4, "raw")
    assert (imp_am.lam, imp_am.width, imp_am.generator_lr, imp_am.gradient_input) == (1.0, 256, 2e-4, "raw")
    assert (imp_am.tau, imp_am.hinge, imp_am.latent, imp_am.encoder_width) == (0.9, True, 64, 32)


@pytest.mark.parametrize(("name", "eps", "step"), [("cifar10-table-b", 8, 2), ("cifar100", 8, 2), ("svhn", 4, 1)])
def test_the_papers_training(name: str, eps: int, step: int) -> None:
    p = presets.load(name)
    t = p.train
    assert (p.model.name, p.model.mean) == ("wrn_28_10", None)
    assert (t.epochs, t.batch_size) == (76, 64)
    assert (t.optimizer.lr, t.optimizer.momentum, t.optimizer.weight_decay) == (0.1, 0.9, 2e-4)
    assert p.threat.eps == pytest.approx(eps / 255, rel=1e-12) and p.threat.set == "linf"
    assert p.methods.at_pgd.steps == 7 and p.methods.at_pgd.step_size == pytest.approx(step / 255, rel=1e-12)
    assert t.augmentation.crop == (0 if name == "svhn" else 4) and t.augmentation.flip == (name != "svhn")
    assert (t.augmentation.padding, t.inner_batch_norm) == ("zero", "eval")
    assert p.matrix.seeds == [0, 1, 2]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_rate_falls_with_the_first_batch_of_epoch_75(name: str) -> None:
    t = presets.load(name).train
    batches = 766
    rates = [rate(t.schedule, t.optimizer.lr, (epoch + n / batches) / 76) for epoch in (73, 74) for n in (0, 765)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_the_training_of_rice_et_al() -> None:
    p = presets.load("cifar10-table-a")
    t = p.train
    assert (p.model.name, t.epochs, t.batch_size, t.optimizer.weight_decay) == ("wrn_34_10", 200, 128, 5e-4)
    assert (p.model.mean, p.model.std) == ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])
    assert [rate(t.schedule, t.optimizer.lr, e / 200) for e in (99, 100, 149, 150)] == pytest.approx(
        [0.1, 0.01, 0.01, 0.001]
    )
    assert (t.augmentation.padding, t.augmentation.crop, t.inner_batch_norm) == ("reflect", 4, "train")
    assert p.methods.at_pgd.steps == t.selection.steps == 10 and p.data.split.validation == 1000
    assert p.methods.at_pgd.step_size == t.selection.step_size == pytest.approx(2 / 255, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in NEW if name != "fashion-mnist"])
def test_the_evaluation_is_the_released_one_and_more(name: str) -> None:
    """Step sizes in units of eps; the standard of AutoAttack beside it; the gate is shut."""
    p = presets.load(name)
    attacks = p.evaluation.attacks
    asked = {"pgd-10": (10, 0.25), "pgd-20": (20, 0.25), "pgd-100": (100, 0.25), "mim-20": (20, 0.25)}
    asked |= {"cw-30": (30, 0.25), "fea-50": (50, 0.125)}
    found = {attack: (attacks[attack].steps, attacks[attack].step_size / p.threat.eps) for attack in asked}
    assert {a: s for a, (s, _) in found.items()} == {a: s for a, (s, _) in asked.items()}
    assert [share for _, share in found.values()] == pytest.approx([share for _, share in asked.values()])
    assert (attacks["autoattack"].steps, attacks["autoattack"].queries) == (100, 5000)
    assert attacks["fea-50"].targets == (200 if name in TABLES else 10)
    assert p.health.gate == "stop" and p.evaluation.batch_size == 200


def test_the_affordable_preset_is_short_and_its_generator_fits_its_classifier() -> None:
    p = presets.load("cifar10-resnet18")
    assert p.train.epochs <= 30 and p.train.schedule.name in ("one_cycle", "cosine")
    estimate = Estimate(p)
    generator, _ = estimate.networks["adt_exp_am"]
    assert 0.5 < generator / estimate.forward < 2


def test_the_re_encoded_images_have_the_same_preset_but_for_name_data_and_what_is_published() -> None:
    changed = presets.differences(ROOT / "presets/cifar10-jpeg-resnet18.yaml", "cifar10-resnet18")
    keys = {line.split(":")[0] for line in changed}
    assert keys == {"preset", "comparison.published", *(f"data.{k}" for k in ("name", "title", "archive", "channels"))}
    p = presets.load("cifar10-jpeg-resnet18")
    assert p.data.called == "CIFAR-10 (JPEG)" and p.comparison.published is None


@pytest.mark.parametrize("name", NEW)
def test_a_preset_takes_the_users_own_files(name: str, tmp_path: Path) -> None:
    place = "archive" if name == "cifar10-jpeg-resnet18" else "folder"
    presets.use(name, [f"data.{place}=elsewhere"], tmp_path / "params.yaml")
    p = params.load(tmp_path / "params.yaml")
    assert getattr(p.data, place) == "elsewhere"
    assert p.model_copy(update={"data": presets.load(name).data}) == presets.load(name)


# What they do


def smaller(name: str) -> list[str]:
    """Overrides of a preset for a few steps: attacks with the least of everything, and `SMALL`."""
    p = presets.load(name)
    changes: dict[str, Any] = {}
    for section in ("evaluation", "health"):
        for attack, settings in getattr(p, section).attacks.items():
            values = settings.model_dump(exclude_defaults=True) | {"family": settings.family}
            weak = {key: value for key, value in WEAK.items() if key in values}
            changes[f"{section}.attacks.{attack}"] = values | weak
    return [f"{key}={json.dumps(value)}" for key, value in (changes | SMALL).items()]


def synthetic(p: Params) -> Arrays:
    """40 training, 20 validation and 20 test images of the preset's shape; all classes are named, few are met."""
    generator, count = np.random.default_rng(0), 80
    shape, classes = SHAPES[p.data.name], CLASSES.get(p.data.name, 10)
    images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    order = np.arange(count)
    parts = {"train": order[:40], "validation": order[40:60], "test": order[60:]}
    return Arrays(images, generator.integers(0, classes, count), parts, [f"class {c}" for c in range(classes)])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, narrow networks in the place of the wide ones, and torch's settings as before afterwards."""
    monkeypatch.setattr(models, "WideResNet", lambda depth, widen, *rest: WideResNet(10, 1, *rest))
    monkeypatch.setattr(models, "PreActResNet18", lambda *rest: PreActResNet18(*rest, widths=(4, 4, 8, 8)))
    mode = torch.get_deterministic_debug_mode()
    for file in ("pipeline", "stages", "plugins"):
        (tmp_path / file).symlink_to(ROOT / file)
    yield tmp_path
    torch.set_deterministic_debug_mode(mode)


def run(stage: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [stage, *arguments])
    importlib.import_module(f"stages.{stage}").main()


def prepared(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """params.yaml and data in the folder, which becomes the current one."""
    presets.use(name, smaller(name), folder / "params.yaml")
    monkeypatch.chdir(folder)
    p = params.load()
    store.save(synthetic(p), Path("data") / p.data.name, p.data.name, p.data.called)
    return p


def without_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are put together but not rendered, which takes as long as all else."""

    def save(figure: Figure, path: Path) -> None:
        write_bytes(path, b"figure")
        pyplot.close(figure)

    for file in sorted((ROOT / "pipeline/plots").glob("[!_]*.py")):
        module = importlib.import_module(f"pipeline.plots.{file.stem}")
        monkeypatch.setattr(module, "save", save)


def trained(p: Params, steps: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for method in p.matrix.methods:
        for stage in steps:
            run(stage, ["--method", method, "--seed", "0"], monkeypatch)


@pytest.mark.parametrize("name", NEW)
def test_every_stage_runs(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = prepared(name, workspace, monkeypatch)
    without_rendering(monkeypatch)
    trained(p, ["train", "attack", "probe"], monkeypatch)
    for stage, output in STAGES.items():
        run(stage, [], monkeypatch)
        assert Path(output).exists(), stage
    for method in METHODS:
        row = read_csv(Path(f"runs/{method}/seed-0/history.csv"))[0]
        assert np.isfinite(float(row["train_loss"]))
        assert Verdicts.load(Path(f"verdicts/{method}/seed-0.npz")).attacks == ["natural", *p.evaluation.attacks]
    comparison = read_json(Path("results/comparison.json"))
    assert comparison["data"] == p.data.called and set(comparison["methods"]) == set(METHODS)
    told = [Path(f"results/{file}").read_text() for file in ("comparison.md", "health.md", "report.html")]
    assert all(p.data.called in text for text in told)
    assert (comparison["published"] is None) == (p.comparison.published is None)


@pytest.mark.parametrize("name", NAMES)
def test_the_real_network_takes_images_of_the_presets_shape(name: str) -> None:
    p = presets.load(name)
    shape, classes = SHAPES[p.data.name], CLASSES.get(p.data.name, 10)
    with torch.device("meta"):
        network = models.classifier(p.model, {"shape": shape, "classes": range(classes)})
        assert network(torch.empty(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar10-table-b", 36_479_194), ("cifar10-table-a", 46_160_474), ("cifar10-resnet18", 11_172_170)],
)
def test_the_networks_have_the_size_of_the_released_ones(name: str, parameters: int) -> None:
    """WRN-28-10 without the unused block of the released file; WRN-34-10 and PreActResNet-18 as their layers add up."""
    with torch.device("meta"):
        network = models.classifier(presets.load(name).model, {"shape": (3, 32, 32), "classes": range(10)})
    assert models.count_parameters(network) == parameters


def test_sizes_are_all_that_is_reduced() -> None:
    """Every override names a key that the preset has, and no `as`, eps, lambda, rate, network or selection rule."""
    values = dict(presets.flatten(read_yaml(ROOT / "presets/cifar10-table-b.yaml")))
    kept = (
        "threat.",
        "model.",
        "train.optimizer",
        "train.schedule",
        "train.precision",
        "train.inner",
        "methods.adt_exp.lam",
    )
    for key in SMALL:
        assert any(known == key or known.startswith(f"{key}.") for known in values), key
        assert not key.startswith(kept)
