"""The schema of params.yaml: what it accepts, and how it says no."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import params, presets
from pipeline.errors import UserError
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
SPSA = {"family": "spsa", "steps": 3, "step_size": 0.01, "samples": 256, "sigma": 0.001}
# What the studies name, where a test has attacks of its own.
NO_STUDIES = {f"{study}.attacks": ["pgd-20"] for study in ("ablation", "degeneracy", "transfer")}
SQUARE = {"family": "autoattack", "queries": 10, "parts": ["square"]}


def digits(**changes: Any) -> dict[str, Any]:
    """The digits preset with dotted keys replaced; a value of `...` removes the key."""
    values = read_yaml(ROOT / "presets/digits.yaml")
    for key, value in changes.items():
        place = values
        *parents, last = key.split(".")
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return values


def complaint(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        params.parse(digits(**changes), "params.yaml")
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_names_itself(path: Path) -> None:
    assert params.load(path).preset == path.stem


def test_the_committed_params_are_the_digits_preset(committed: Callable[[str], bytes]) -> None:
    assert committed("params.yaml") == committed("presets/digits.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"methods.adt_exp.lamda": 1},
            "methods.adt_exp.lamda: unknown key; allowed here: as, lam, outer_samples",
        ),
        ({"evaluation.attacks.fgsm.step": 1}, "evaluation.attacks.fgsm.step: unknown key; allowed here: family"),
        ({"train.devices": 3}, "train: batch_size: 64 cannot be shared out over 3 devices: it must be a multiple"),
        ({"train.devices": 64}, "train: batch_size: 64 cannot be shared out over 64 devices"),
        ({"train.batch_norm": "sync"}, "train.batch_norm: "),
        ({"evaluation.devices": 0}, "evaluation.devices: "),
        ({"cluster.memory_gib": 0}, "cluster.memory_gib: "),
        (
            {"train.devices": 2, "matrix.methods": ["at_pgd", "feature_scatter"]},
            "train.devices: must be 1 with feature_scatter in matrix.methods",
        ),
        ({"trian": {}}, "trian: unknown key; allowed here: preset, data"),
        ({"threat.eps": -0.1}, "threat.eps: input should be greater than 0 (got -0.1)"),
        ({"threat.eps": "8/255"}, "threat.eps: input should be a valid number (got '8/255')"),
        ({"threat.eps": float("nan")}, "threat.eps: input should be a finite number (got nan)"),
        ({"threat.eps": float("inf")}, "threat.eps: input should be a finite number (got inf)"),
        (
            {"threat.set": "l1"},
            "threat.set: should be linf, l2, or the import path package.module:Class of your own",
        ),
        ({"train.epochs": 0}, "train.epochs: input should be greater than or equal to 1 (got 0)"),
        ({"train.epochs": 2.5}, "train.epochs: input should be a valid integer"),
        ({"train.batch_size": ...}, "train.batch_size: field required"),
        (
            {"matrix.methods": ["at_pgd", "at_pdg"]},
            "matrix.methods.1: unknown method; there are: standard, at_fgsm",
        ),
        ({"matrix.seeds": [0, 1, 0]}, "matrix: seeds must be distinct, but 0 stands there twice"),
        ({"matrix.seeds": []}, "matrix.seeds: list should have at least 1 item"),
        ({"matrix.seeds": [-1]}, "matrix.seeds.0: input should be greater than or equal to 0 (got -1)"),
        (
            {"ablation.grids.quick.adt_exp.lam": [0.1, 1.0]},
            "ablation.grids.quick.adt_exp: lam must contain 0, the point that degenerates to adversarial training",
        ),
        (
            {"ablation.grids.full.adt_imp_am.tau": [0.5, 0.5]},
            "ablation.grids.full.adt_imp_am: tau must be distinct",
        ),
        (
            {"ablation.grids.full.adt_exp_am.tau": [0.5]},
            "ablation.grids.full.adt_exp_am.tau: unknown key; allowed here: lam",
        ),
        (
            {"ablation.grids.full.adt_ex": {"lam": [0, 1.0]}},
            "ablation.grids.full.adt_ex: unknown key; allowed here: adt_exp, adt_exp_am, adt_imp_am",
        ),
        ({"ablation.grids.quick": {}}, "ablation.grids.quick: needs at least one method: adt_exp, adt_exp_am, ad"),
        ({"ablation.grid": "larger"}, "ablation: grid: 'larger' is not one of grids (quick, full)"),
        ({"degeneracy.lams": [0.1]}, "degeneracy: lams must contain 0"),
        ({"degeneracy.attack": "pgd-7"}, "degeneracy: attack: 'pgd-7' is not one of attacks (fgsm, pgd-10"),
        (
            {"degeneracy.attacks": ["fgsm", "pgd-20", "pgd-7"]},
            "degeneracy.attacks: 'pgd-7' is not one of evaluation.attacks (fgsm, pgd-10",
        ),
        ({"model.widths": ...}, "model: small_cnn needs widths"),
        ({"model.mean": [0.5], "model.std": [0.2]}, "model: small_cnn takes no mean and std"),
        ({"train.schedule": {"name": "piecewise"}}, "train.schedule: piecewise needs milestones"),
        ({"train.schedule": {"name": "cosine", "warmup": 0.1}}, "train.schedule: cosine takes no warmup"),
        (
            {"train.schedule": {"name": "piecewise", "milestones": [0.7, 0.5], "factor": 0.1}},
            "train.schedule: milestones must ascend",
        ),
        ({"methods.adt_exp.as": "relesed"}, "methods.adt_exp.as: input should be 'released' or 'paper' (got 'rel"),
        (
            {"methods.adt_exp.as": ...},
            "methods.adt_exp: needs `as: released` or `as: paper`, or every switch: outer_samples, initial_rho",
        ),
        (
            {
                "methods.adt_imp_am.as": "paper",
                "methods.adt_imp_am.hinge": True,
                "methods.adt_imp_am.tau": None,
            },
            "methods.adt_imp_am: hinge: true needs tau; the paper has none",
        ),
        ({"ablation.attack": "cw-7"}, "ablation: attack: 'cw-7' is not one of attacks (pgd-20, cw-30)"),
        ({"transfer.attacks": ["cw-7"]}, "transfer.attacks: 'cw-7' is not one of evaluation.attacks (fgsm, pgd-10"),
        ({"health.base": "pgd-7"}, "health.base: 'pgd-7' is not one of evaluation.attacks (fgsm, pgd-10"),
        ({"health.base": "cw-30"}, "health.base: 'cw-30' is not of family pgd"),
        ({"health.gate": "shut"}, "health.gate: input should be 'warn' or 'stop' (got 'shut')"),
        ({"health.steps": [20, 5]}, "health: steps must rise"),
        ({"health.attacks": {}}, "health: attacks: needs a black box: family spsa, or family autoattack with"),
        ({"health.attacks": {"pgd-20": SQUARE}}, "health.attacks: 'pgd-20' is one of evaluation.attacks already"),
        ({"health.attacks.square.parts": ["sqare"]}, "health.attacks.square.parts.0: input should be 'apgd-ce', 'ap"),
        ({"health.attacks.square.parts": ["square"] * 2}, "health.attacks.square: parts must be distinct"),
        ({"health.attacks.spsa.parts": ["square"]}, "health.attacks.spsa: family spsa takes no parts"),
        ({"comparison.reference": "at_pdg"}, "comparison.reference: unknown method; there are"),
        ({"matrix.methods": ["adt_exp"]}, "comparison.reference: 'at_pgd' is not one of matrix.methods (adt_exp)"),
        ({"evaluation.attacks.cw-30.confidence": ...}, "evaluation.attacks.cw-30: family cw needs confidence"),
        ({"evaluation.attacks.pgd-10.momentum": 1.0}, "evaluation.attacks.pgd-10: family pgd takes no momentum"),
        (
            {"evaluation.attacks.spsa": SPSA | {"samples": None}},
            "evaluation.attacks.spsa: family spsa needs samples",
        ),
        (
            {"evaluation.attacks.spsa": SPSA | {"samples": 5}},
            "evaluation.attacks.spsa: samples of family spsa come in pairs: an even number, not 5",
        ),
        (
            {"evaluation.attacks.spsa": SPSA | {"rule": "any"}},
            "evaluation.attacks.spsa: family spsa takes no restarts or rule, which are for pgd, mim, cw",
        ),
        ({"evaluation.attacks.worst-case": {"family": "fgsm"}}, "evaluation: attacks: 'worst-case' is always"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    message = complaint(**changes)
    assert message.startswith(f"params.yaml: {said}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: [1\n", "params.yaml, line 2: not valid YAML"),
        ("just words\n", "params.yaml: expected keys and values, found str"),
        ("preset: a\npreset: b\n", "params.yaml, line 2: not valid YAML"),
        ("", "params.yaml: expected keys and values, found NoneType"),
    ],
)
def test_files_that_are_not_parameters(tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    with pytest.raises(UserError, match="params.yaml") as caught:
        params.load()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_released_stands_for_the_attack_of_that_name_at_the_radius_in_force() -> None:
    """The authors' 8/255, 2/255 and 1/255: at their radius the released step sizes come out."""
    names = ["fgsm", "pgd-10", "pgd-20", "pgd-100", "mim-20", "cw-30", "fea-50", "spsa"]
    attacks = {name: "released" for name in names if name != "pgd-10"} | {
        "pgd-10": {"family": "pgd", "steps": 10, "step_size": 0.1}
    }
    changes = {"threat.eps": 8 / 255, "evaluation.attacks": attacks, "health.attacks": {"square": SQUARE}}
    p = params.parse(digits(**changes | NO_STUDIES), "params.yaml")
    found = p.evaluation.attacks
    assert [found[name].step_size for name in ("pgd-20", "mim-20", "cw-30")] == pytest.approx([2 / 255] * 3)
    assert found["fea-50"] == params.Attack(family="fea", steps=50, step_size=found["fea-50"].step_size, targets=200)
    assert found["fea-50"].step_size == pytest.approx(1 / 255) and found["fgsm"] == params.Attack(family="fgsm")
    assert (found["spsa"].steps, found["spsa"].samples, found["spsa"].sigma) == (100, 256, 0.001)
    assert found["pgd-10"].step_size == 0.1


def test_released_is_refused_for_a_name_that_the_released_evaluation_does_not_have() -> None:
    assert "'pgd-7' is not in the released evaluation; there are fgsm, pgd-20" in complaint(
        **{"evaluation.attacks.pgd-7": "released"}
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists))
@settings(max_examples=60, deadline=None)
def test_no_value_of_any_kind_ends_in_anything_but_params_or_a_line(value: Any) -> None:
    for key in ("threat", "threat.eps", "matrix.seeds", "evaluation.attacks", "methods.adt_exp.accumulate"):
        try:
            params.parse(digits(**{key: value}), "params.yaml")
        except UserError as error:
            assert len(str(error).splitlines()) == 1


def test_overrides_are_written_into_the_header_and_into_their_places() -> None:
    text = presets.render("digits", ["methods.adt_exp.lam=0.1", "matrix.seeds=[4, 5]"])
    assert text.splitlines()[0] == "# Overrides: methods.adt_exp.lam=0.1 matrix.seeds=[4, 5]"
    assert "# Keys, ranges and meanings" in text, "comments survive"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    presets.use("digits", ["methods.adt_exp.lam=0.1"], path)
    return path


def test_differences_name_key_preset_value_and_own_value(target: Path) -> None:
    assert presets.differences(target, None) == ["methods.adt_exp.lam: 0.01 -> 0.1"]
    assert "preset: smoke -> digits" in presets.differences(target, "smoke")


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("digit", [], "preset 'digit': no such preset; there are: cifar10-jpeg-resnet18, cifar10-resnet18"),
        ("../digits", [], "no such preset"),
        ("digits", ["lam"], "--set lam: expected KEY=VALUE"),
        ("digits", ["methods.adt_exp.lambda=1"], "no key 'lambda'; there are: as, lam, outer_samples"),
        ("digits", ["seeds.0=1"], "no key 'seeds'; there are: preset, data"),
        ("digits", ["threat.eps=-1"], "threat.eps: input should be greater than 0 (got -1)"),
        ("digits", ["threat.eps=[1"], "not valid YAML"),
    ],
)
def test_a_wrong_preset_or_override_leaves_the_file_alone(
    target: Path, name: str, overrides: list[str], said: str
) -> None:
    before = target.read_bytes()
    with pytest.raises(UserError) as caught:
        presets.use(name, overrides, target)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert target.read_bytes() == before
