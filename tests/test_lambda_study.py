"""The lambda study: which points it has, what their numbers depend on, and what is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import adversaries, cell, params
from pipeline.adversaries.amortized import generator_input
from pipeline.cell import Cell
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.files import read_csv, read_json
from pipeline.perturbation import Linf
from pipeline.search import grid
from pipeline.seeding import Stream
from pipeline.studies import lambda_study
from pipeline.studies.lambda_study import Point, Study, code_length, points
from pipeline.yaml_files import read_yaml
from stages import ablation as stage
from stages import claims as claims_stage
from tests.small_settings import METHODS

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FULL = {"adt_exp": {"lam": [0, 0.5]}, "adt_exp_am": {"lam": [1e-4, 0]}, "adt_imp_am": {"lam": [0, 2.0], "tau": [0.5]}}


def study(chosen: dict[str, Any], **changes: Any) -> params.Params:
    """The smoke preset with this grid; dotted keys are replaced."""
    values = read_yaml(ROOT / "presets/smoke.yaml")
    values["ablation"] |= {"grid": "mine", "grids": {"mine": chosen}}
    for key, value in changes.items():
        place = values
        *parents, last = key.split(".")
        for part in parents:
            place = place[part]
        place[last] = value
    return params.parse(values, "params.yaml")


# Points


@given(
    st.sets(st.floats(0, 10), min_size=1).map(lambda found: sorted(found | {0.0, 1.0})),
    st.sets(st.floats(-1, 1), min_size=1),
    st.sets(st.integers(0, 9), min_size=1),
)
def test_every_lambda_above_0_meets_every_threshold_and_lambda_0_none(lams, taus, seeds) -> None:
    p = study({"adt_imp_am": {"lam": lams[::-1], "tau": list(taus)}}, **{"ablation.seeds": list(seeds)})
    found = points(p)
    assert list(found) == ["at_pgd", "adt_imp_am"]
    assert found["at_pgd"] == [Point("at_pgd", seed) for seed in sorted(seeds)]
    pairs = [(0.0, None), *((lam, tau) for lam in lams[1:] for tau in sorted(taus))]
    assert [(x.lam, x.tau, x.seed) for x in found["adt_imp_am"]] == [
        (*pair, s) for pair in pairs for s in sorted(seeds)
    ]


def test_only_the_chosen_grid_counts_and_a_method_without_a_threshold_has_none() -> None:
    found = points(study(FULL))
    assert list(found) == ["at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am"]
    assert [point.coordinates() for point in found["adt_exp_am"]] == [{"lam": 0.0, "seed": 0}, {"lam": 1e-4, "seed": 0}]


def test_without_thresholds_the_methods_own_is_the_only_one() -> None:
    p = study({"adt_imp_am": {"lam": [0, 1.0]}}, **{"methods.adt_imp_am.tau": 0.25})
    assert [point.tau for point in points(p)["adt_imp_am"]] == [None, 0.25]
    bare = study({"adt_imp_am": {"lam": [0, 1.0]}}, **{"methods.adt_imp_am.hinge": False})
    assert [point.tau for point in points(bare)["adt_imp_am"]] == [None, None]


def test_thresholds_without_the_hinge_are_refused() -> None:
    p = study(FULL, **{"methods.adt_imp_am.hinge": False})
    with pytest.raises(UserError, match=r"^params.yaml: ablation.grids.mine.adt_imp_am.tau: there is no threshold wit"):
        points(p)


def test_a_point_changes_lambda_and_tau_and_the_length_of_the_training_alone() -> None:
    p = study(FULL, **{"ablation.epochs": 7})
    settings = Point("adt_imp_am", 3, 2.0, 0.5).settings(p)
    own = p.methods.adt_imp_am.model_copy(update={"lam": 2.0, "tau": 0.5})
    expected = p.model_dump() | {"train": p.train.model_dump() | {"epochs": 7}}
    expected["methods"] = p.methods.model_dump() | {"adt_imp_am": own.model_dump()}
    assert settings.model_dump() == expected


def test_without_lambda_no_threshold_matters_and_the_encoder_learns_nothing(make_model, make_examples) -> None:
    examples, model = make_examples(8), make_model().eval()

    def step(tau: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        settings = METHODS["adt_imp_am"].model_copy(update={"lam": 0.0, "tau": tau})
        adversary = adversaries.build("adt_imp_am", settings, Linf(0.2), 1, 6)
        for layer in adversary.parameters():
            layer.data = Stream.of(1, "weights").at(torch.arange(layer.numel())).normal(1).view_as(layer) / 10
        before = [layer.clone() for layer in adversary.encoder.parameters()]
        optimizer = adversary.optimizer()
        samples = adversary(model, examples.x, examples.y, Stream.of(0, "noise").at(examples.index))
        (torch.nn.functional.cross_entropy(model(samples.x), examples.y) + samples.penalty).backward()
        optimizer.step()
        assert all(map(torch.equal, before, adversary.encoder.parameters()))
        return before, list(adversary.generator.parameters())

    (_, one), (_, other) = step(0.1), step(0.9)
    assert all(map(torch.equal, one, other))


# Content keys


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the data of the smoke preset; the code of the project counts as one constant."""
    monkeypatch.chdir(tmp_path)
    for module in (cell, lambda_study):
        monkeypatch.setattr(module, "digest_code", lambda *_: "code")
    data = study(FULL).data
    store.save(SOURCES[data.name](data), Path("data") / data.name, data.name)


def name(p: params.Params, method: str = "adt_imp_am") -> str:
    return Study(p, method, CPU, Path("work")).name()


SAME = [
    {"methods.adt_imp_am.lam": 7.0},
    {"methods.adt_imp_am.tau": 0.1},
    {"methods.adt_exp.steps": 4},
    {"ablation.seeds": [4, 5]},
    {"ablation.confidence": 0.5},
    {"train.epochs": 9},
]
OTHER = [
    {"methods.adt_imp_am.width": 5},
    {"ablation.epochs": 2},
    {"ablation.samples": 3},
    {"ablation.attacks": ["pgd-3"]},
    {"evaluation.attacks.pgd-3.steps": 4},
    {"threat.eps": 0.1},
    {"train.optimizer.lr": 0.1},
]


def test_a_study_is_another_one_exactly_if_a_number_of_its_points_may_change(workspace: None) -> None:
    base = name(study(FULL))
    for change in SAME:
        assert name(study(FULL, **change)) == base, change
    assert name(study({"adt_imp_am": {"lam": [0, 3.0]}})) == base
    others = [name(study(FULL, **change)) for change in OTHER] + [name(study(FULL), "at_pgd"), base]
    assert len(set(others)) == len(others)


# The stage


@pytest.fixture
def run(workspace: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """Runs the stage and returns lambda.csv."""

    def run(chosen: dict[str, Any], **changes: Any) -> list[dict[str, str]]:
        monkeypatch.setattr(stage.params, "load", lambda: study(chosen, **changes))
        stage.main()
        return read_csv(Path("results/ablation/lambda.csv"))

    return run


def test_the_stage_measures_every_method_and_leaves_empty_what_is_not_defined(run) -> None:
    rows = run(FULL, **{"evaluation.attacks.pgd-3.steps": 1, "ablation.attacks": ["pgd-3"]})
    assert [(row["method"], row["lam"], row["tau"]) for row in rows] == [
        ("at_pgd", "", ""),
        ("adt_exp", "0", ""),
        ("adt_exp", "0.5", ""),
        ("adt_exp_am", "0", ""),
        ("adt_exp_am", "0.0001", ""),
        ("adt_imp_am", "0", ""),
        ("adt_imp_am", "2", "0.5"),
    ]
    has = {column: [row["method"] for row in rows if row[column]] for column in ("entropy", "code_length")}
    assert has == {"entropy": ["adt_exp"] * 2 + ["adt_exp_am"] * 2, "code_length": ["adt_imp_am"]}
    common = ("val_robust", "natural", "pgd-3", "worst-case", "adversarial_loss", "fooled", "diversity", "cosine")
    assert all(row[column] for row in rows for column in common)
    claims_stage.main()
    judged = read_json(Path("results/ablation/claims.json"))
    assert len(judged["claims"]) == 3 * 6 and {claim["verdict"] for claim in judged["claims"]} == {"undecided"}
    assert "fewer than 3 seeds" in Path("results/ablation/claims.md").read_text()
    assert Path("results/ablation/lambda.svg").exists()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """The points that are trained and measured, as it happens; in place of both, arbitrary numbers. No figure."""
    done: list[Point] = []
    monkeypatch.setattr(stage.figure, "draw", lambda *_: None)

    def evaluate(self: Study, point: Point) -> tuple[float, dict[str, float]]:
        done.append(point)
        values = {column: hash((point, column)) % 97 / 97 for column in lambda_study.columns(self.p)[5:]}
        return 0.5, values | {"natural": 0.9, "entropy": 0.25}

    monkeypatch.setattr(Study, "evaluate", evaluate)
    return done


def test_a_grid_that_is_extended_or_exchanged_repeats_nothing(run, trained: list[Point], monkeypatch) -> None:
    first = run({"adt_exp": {"lam": [0, 1.0]}})
    assert trained == [Point("at_pgd", 0), Point("adt_exp", 0, 0.0), Point("adt_exp", 0, 1.0)]
    trained.clear()
    both = {"adt_exp": {"lam": [0, 1e-3, 1.0]}, "adt_imp_am": {"lam": [0, 1.0], "tau": [0.5]}}
    extended = run(both, **{"ablation.seeds": [0, 1]})
    assert Point("adt_exp", 0, 1e-3) in trained and len(trained) == 2 + 6 + 4 - 3 == len(set(trained))
    assert [row for row in extended if row in first] == first
    trained.clear()
    files = {path: path.read_bytes() for path in Path("results/ablation").iterdir()}
    run({"adt_exp": {"lam": [0, 1.0]}})
    run(both, **{"ablation.seeds": [0, 1]})
    assert trained == [] and {path: path.read_bytes() for path in files} == files


def test_an_interrupted_study_goes_on_where_it_was(run, trained: list[Point], monkeypatch) -> None:
    told = grid.optuna.study.Study.tell

    def killed(self, trial, *rest, **options):
        if len(trained) == 3:
            raise KeyboardInterrupt
        return told(self, trial, *rest, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grid.optuna.study.Study, "tell", killed)
        run(FULL)
    assert not Path("results").exists()
    assert len(run(FULL)) == 7
    assert len(trained) == 8 and trained[2] == trained[3]


# Measuring


def test_the_code_length_is_that_of_each_image_and_sample_alone(workspace: None, make_model, make_examples) -> None:
    adversary = adversaries.build("adt_imp_am", METHODS["adt_imp_am"], Linf(0.2), 1, 6)
    for layer in adversary.parameters():
        layer.data = Stream.of(3, "weights").at(torch.arange(layer.numel())).normal(1).view_as(layer) / 5
    model, examples, stream = make_model().eval(), make_examples(5), Stream.of(0, "diversity")
    found = code_length(adversary, model, examples, stream, 3, 2, 12)
    assert adversary.training, "the mode is as it was"
    adversary.eval()
    lengths = []
    for n in range(5):
        for draw in range(3):
            noise = stream.at(torch.tensor([n])).branch(draw)
            z = noise.uniform(1, 5)[:, 0] * 2 - 1
            with torch.no_grad():
                maps = generator_input(model, examples.x[n : n + 1], examples.y[n : n + 1], Linf(0.2), "sign")
                features = adversary.encoder(torch.tanh(adversary.generator(maps, z)))
            normal = torch.distributions.Normal(features[0].double(), features[1].double().sqrt())
            lengths.append(-normal.log_prob(z.double()).mean())
    assert found == pytest.approx(float(torch.stack(lengths).mean()), rel=1e-5)


def test_a_model_is_measured_on_test_images_and_selected_without_them(workspace: None, monkeypatch) -> None:
    p = study(FULL)
    opened: list[str] = []
    for module in (cell, lambda_study):
        load = module.load_split
        monkeypatch.setattr(
            module,
            "load_split",
            lambda folder, part, device, load=load: opened.append(part) or load(folder, part, device),
        )
    method = Study(p, "adt_exp", CPU, Path("work"))
    point = Point("adt_exp", 0, 0.5)
    value, measured = method.evaluate(point)
    assert opened == ["validation", "test"]
    best, model, _ = Cell(point.settings(p), "adt_exp", 0).trained(CPU, Path("work"))
    assert value == best.robust
    test: Split = store.load_split(Path("data/digits"), "test")
    with torch.no_grad():
        right = (model.eval()(test.x).argmax(1) == test.y).double().mean()
    assert measured["natural"] == pytest.approx(float(right))
    assert set(measured) < set(lambda_study.columns(p))
