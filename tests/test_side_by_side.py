"""Any chosen runs beside each other: by path, from another workspace, from MLflow; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import cli, live, params, presets, tracking
from pipeline.comparison import side_by_side
from pipeline.errors import UserError
from pipeline.files import digest, digest_file, write_csv, write_json, write_text
from pipeline.verdicts import Column, Verdicts

N = 30


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with params.yaml of two methods and one seed."""
    text = presets.render("smoke", ["matrix.methods=[at_pgd, adt_exp]", "matrix.seeds=[0]"])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("params.yaml").write_text(text)
    return tmp_path


def run(
    method: str,
    seed: int = 0,
    root: Path = Path(),
    held: int = 20,
    attacks: dict[str, dict[str, Any]] | None = None,
    examples: int = N,
    settings: bool = True,
    **changes: Any,
) -> Path:
    """The files of a training and of its verdicts, under which `held` examples hold."""
    attacks = {"natural": {}} | (attacks or {"pgd-3": {"steps": 3, "eps": changes.get("eps", 0.2)}})
    description = {
        "method": method,
        "seed": seed,
        "data": {"name": "digits", "sha256": changes.get("data", "ab") * 32},
        "threat": {"set": "linf", "eps": changes.get("eps", 0.2)},
        "model": {"name": "small_cnn"},
        "train": {"epochs": changes.get("epochs", 2), "optimizer": {"lr": 0.1}},
        "method_params": {"steps": 2},
        "code": "cd" * 32,
    }
    cost = {"gradient_evaluations_per_example_and_epoch": 3, "gradient_evaluations": 900, "classifier_parameters": 7}
    folder = root / "runs" / method / f"seed-{seed}"
    write_json(folder / "run.json", {"key": digest(description), **description, **cost})
    write_json(folder / "metrics.json", {"selected_epoch": 1})
    rows = [{"epoch": epoch, "val_natural": 0.9, "val_robust": 0.5} for epoch in (1, 2)]
    write_csv(folder / "history.csv", rows, ["epoch", "val_natural", "val_robust"])
    write_text(folder / "model.safetensors", f"{method} {seed} {root} {changes}")
    ones = np.ones(examples, np.float32)
    columns = {name: Column(np.arange(examples) >= held, ones, ones) for name in attacks}
    said = {name: json.dumps(values) for name, values in attacks.items()} if settings else None
    identity = digest_file(folder / "model.safetensors")
    table = Verdicts.join(columns, np.zeros(examples, np.int64), np.arange(examples), identity, said)
    table.save(root / "verdicts" / method / f"seed-{seed}.npz")
    return folder


def shown(*patterns: object, reference: str | None = None, allow_mixed: bool = False) -> str:
    return side_by_side.chosen(params.load(), [str(p) for p in patterns], reference, allow_mixed)


def refusal(*patterns: object, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        shown(*patterns, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_runs_of_two_methods_stand_in_one_table() -> None:
    for seed in range(3):
        run("at_pgd", seed)
        run("adt_exp", seed, held=20 + seed)
    text = shown("runs/*/seed-*")
    assert text.startswith("# 6 chosen runs\n\nAccuracy in % on 30 test images")
    assert "| adt_exp | +3.3 [" in text and "Difference to at_pgd" in text
    assert "- at_pgd: seed 0 runs/at_pgd/seed-0, seed 1 runs/at_pgd/seed-1, seed 2 runs/at_pgd/seed-2" in text


def test_a_method_with_other_parameters_in_another_workspace_is_another_row(workspace: Path) -> None:
    here, there = run("at_pgd"), run("at_pgd", root=workspace / "there", epochs=9, held=25)
    text = shown(here, there)
    rows = [line for line in text.splitlines() if line.startswith("- at_pgd ")]
    assert len(rows) == 2 and str(there) in rows[1]
    label = rows[1].split(":")[0].removeprefix("- ")
    assert f"Difference to {label} in points" in shown(here, there, reference=label)


def test_a_run_that_is_named_twice_counts_once() -> None:
    run("at_pgd"), run("adt_exp")
    assert shown("runs/*/seed-*", "runs/at_pgd/seed-0").startswith("# 2 chosen runs")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "ef"}, "data: digits abababab (runs/at_pgd/seed-0), digits efefefef (runs/adt_exp/seed-0)"),
        ({"eps": 0.3}, "threat eps, pgd-3 eps: 0.2 (runs/at_pgd/seed-0), 0.3 (runs/adt_exp/seed-0)"),
        ({"attacks": {"pgd-3": {"steps": 4, "eps": 0.2}}}, "pgd-3 steps: 3 (runs/at_pgd/seed-0), 4 (runs/adt"),
        ({"attacks": {"pgd-3": {"steps": 3, "eps": 0.2, "restarts": 2}}}, "pgd-3 restarts: none (runs/at_pgd/"),
        (
            {"attacks": {"pgd-3": {"steps": 3, "eps": 0.2}, "fgsm": {"eps": 0.2}}},
            "attacks: natural, pgd-3 (runs/at_pgd/seed-0), natural, pgd-3, fgsm (runs/adt_exp/seed-0)",
        ),
        ({"examples": 29}, "test examples: 30 images"),
    ],
    ids=["data", "eps", "steps", "a key", "attacks", "examples"],
)
def test_what_must_not_be_mixed_is_named(changes: dict[str, Any], named: str) -> None:
    run("at_pgd"), run("adt_exp", **changes)
    said = refusal("runs/at_pgd/*", "runs/adt_exp/*")
    assert "--allow-mixed" in said and said.split(": ", 2)[2].startswith(named)
    assert ";" not in said, "nothing else differs"
    text = shown("runs/at_pgd/*", "runs/adt_exp/*", allow_mixed=True)
    assert f"MIXED, so differences may have other causes: {named}" in text
    assert "| method | natural | pgd-3 | worst-case |" in text, "the attacks that both have"
    assert ("no paired differences" in text) == bool({"data", "examples"} & changes.keys())


def test_equal_settings_are_not_mixed_whatever_else_differs() -> None:
    run("at_pgd", epochs=5), run("adt_exp", 4)
    assert "MIXED" not in shown("runs/*/*")


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["nothing/*"], "--runs nothing/*: no folder with a run.json"),
        (["runs/at_pgd/seed-*"], "nothing to compare: 2 run(s), all of at_pgd with the same parameters"),
        (["runs/*/*", "mlflow:0123"], "mlflow:0123: no such run: no mlflow.db here"),
    ],
)
def test_mistakes_are_one_line(patterns: list[str], said: str) -> None:
    run("at_pgd"), run("at_pgd", 1)
    assert said in refusal(*patterns)


def test_a_reference_that_is_no_row_is_refused() -> None:
    run("at_pgd"), run("adt_exp")
    assert "--reference trades: not one of the rows: adt_exp, at_pgd" in refusal("runs/*/*", reference="trades")


def test_a_table_that_does_not_say_its_attacks_parameters_is_refused() -> None:
    run("at_pgd"), run("adt_exp", settings=False)
    assert "runs/adt_exp/seed-0: its verdict table does not say the attacks' parameters" in refusal("runs/*/*")


def test_verdicts_of_another_checkpoint_and_missing_ones_are_refused() -> None:
    run("at_pgd")
    write_text(run("adt_exp") / "model.safetensors", "trained again")
    assert "is about another checkpoint" in refusal("runs/*/*")
    Path("verdicts/adt_exp/seed-0.npz").unlink()
    assert "verdicts/adt_exp/seed-0.npz is missing" in refusal("runs/*/*")


# The workspace's own comparison


def record(folder: Path, seconds: float, device: str) -> None:
    key = json.loads((folder / "run.json").read_text())["key"]
    live.record(key, {"seconds": seconds, "finished": 0.0, "machine": {"device": device}})


def test_the_command_prints_the_tables_with_seconds_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    record(run("at_pgd"), 12.34, "NVIDIA H200")
    run("adt_exp")
    write_text(Path("results/comparison.md"), "# the tables\n")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compare"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# the tables"
    assert lines[-2:] == [
        "  at_pgd   12.3 s a run on NVIDIA H200",
        "  adt_exp  not known; 1 of 1 run(s) not trained here or not recorded",
    ]


def test_the_command_says_where_there_is_no_comparison_yet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare"])
    assert capsys.readouterr().err == "error: results/comparison.md: not there yet; dvc repro makes it\n"


# MLflow


def test_runs_in_mlflow_give_the_same_tables_as_their_files() -> None:
    record(run("at_pgd"), 12.34, "cuda")
    run("adt_exp", held=25)
    tracking.sync(results=False)
    by_files = shown("runs/*/*")
    mirrored = shown("mlflow:smoke/adt_exp", "mlflow:smoke/at_pgd seed 0")
    assert mirrored.split("\n- ")[0] == by_files.split("\n- ")[0]
    assert "12.3 s a run on cuda" in mirrored
    (line,) = (line for line in mirrored.splitlines() if line.startswith("- adt_exp: seed 0 mlflow:"))
    assert shown(line.split()[-1], "runs/at_pgd/seed-0").split("\n- ")[0] == by_files.split("\n- ")[0]
    assert "mlflow:0123: Run with id=0123 not found" in refusal("mlflow:0123")
    assert "mlflow:nowhere/at_pgd: no such run" in refusal("mlflow:nowhere/at_pgd")
    Path("runs").rename("moved")
    assert shown("mlflow:smoke/adt_exp", "mlflow:smoke/at_pgd").split("\n- ")[0] == by_files.split("\n- ")[0]
