"""MLflow as a mirror: complete, without repetition, whatever happened on the way."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline import live, presets, tracking
from pipeline.files import digest_file, write_csv, write_json, write_text
from pipeline.verdicts import Column, Verdicts

EPOCHS = 3
NAMES = ("natural", "pgd-3")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with one method and three seeds in its matrix, and a database of its own."""
    text = presets.render("smoke", ["matrix.methods=[at_pgd]", "matrix.seeds=[0, 1, 2]"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("params.yaml").write_text(text)
    return tmp_path


def description(seed: int) -> dict[str, Any]:
    return {
        "key": f"{seed:064x}",
        "method": "at_pgd",
        "seed": seed,
        "data": {"name": "digits", "sha256": "ab" * 32},
        "threat": {"set": "linf", "eps": 0.2},
        "model": {"name": "small_cnn", "widths": [4], "unshuffle": 1},
        "train": {"epochs": EPOCHS, "optimizer": {"lr": 0.1}, "selection": {"steps": 2}},
        "method_params": {"steps": 2, "step_size": 0.1},
        "code": "cd" * 32,
    }


def write_history(folder: Path, epochs: int) -> None:
    rows = [{"epoch": e, "entropy": None, "val_natural": 0.9, "val_robust": e / 10} for e in range(1, epochs + 1)]
    write_csv(folder / "history.csv", rows, ["epoch", "entropy", "val_natural", "val_robust"])


def training(seed: int, epochs: int, pid: int | None = None) -> Path:
    """The files of a training under way, in the process `pid` (this one, so alive)."""
    folder = live.WORK / "train" / str(seed)
    write_text(folder / "pid", str(pid or os.getpid()))
    write_json(folder / "run.json", description(seed))
    write_history(folder, epochs)
    return folder


def finished(seed: int) -> Path:
    """The files of a finished training."""
    folder = Path(f"runs/at_pgd/seed-{seed}")
    names = ("gradient_evaluations", "gradient_evaluations_per_example_and_epoch", "classifier_parameters")
    write_json(folder / "run.json", description(seed) | dict.fromkeys(names, 7))
    write_history(folder, EPOCHS)
    (folder / "model.safetensors").write_bytes(f"weights {seed}".encode())
    write_json(folder / "metrics.json", {"selected_epoch": 2})
    return folder


def attacked(seed: int, broken: int, checkpoint: str | None = None) -> None:
    """A verdict table of ten examples, of which PGD breaks `broken`."""
    column = Column(np.arange(10) < broken, np.zeros(10, np.float32), np.zeros(10, np.float32))
    natural = Column(np.zeros(10, bool), column.margin, column.norm)
    identity = checkpoint or digest_file(Path(f"runs/at_pgd/seed-{seed}/model.safetensors"))
    columns = dict(zip(NAMES, (natural, column), strict=True))
    table = Verdicts.join(columns, np.zeros(10, np.int64), np.arange(10), identity)
    table.save(Path(f"verdicts/at_pgd/seed-{seed}.npz"))


def runs() -> dict[str, Any]:
    """Every run in MLflow by name; a name that is there twice fails."""
    client = MlflowClient(tracking.tracking_uri())
    found = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "a run is there twice"
    return {run.info.run_name: run for run in found}


def steps(run: Any, metric: str = "val_robust") -> list[int]:
    history = MlflowClient(tracking.tracking_uri()).get_metric_history(run.info.run_id, metric)
    return [measured.step for measured in history]


def test_a_run_is_seen_while_it_trains_and_is_finished_once() -> None:
    work = training(0, epochs=1)
    tracking.sync()
    assert (runs()["at_pgd seed 0"].info.status, steps(runs()["at_pgd seed 0"])) == ("RUNNING", [1])
    training(0, epochs=2)
    tracking.sync()
    for file in work.iterdir():
        file.unlink()
    finished(0)
    tracking.sync()
    run = runs()["at_pgd seed 0"]
    assert (run.info.status, steps(run)) == ("FINISHED", [1, 2, 3])


def test_a_killed_training_is_shown_as_killed_and_a_resumed_one_as_running() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    states = []
    for pid in (os.getpid(), gone.pid, os.getpid()):
        training(0, 1, pid)
        tracking.sync()
        states.append(runs()["at_pgd seed 0"].info.status)
    assert states == ["RUNNING", "KILLED", "RUNNING"]


def test_a_second_sync_adds_nothing() -> None:
    for seed in range(3):
        finished(seed)
        attacked(seed, seed)
    assert tracking.sync().startswith("MLflow: 4 runs added")
    before = {name: (run.data.metrics, run.data.tags) for name, run in runs().items()}
    assert tracking.sync() == "MLflow: 0 runs added, 0 updated, experiment 'smoke'"
    assert {name: (run.data.metrics, run.data.tags) for name, run in runs().items()} == before
    assert all(steps(run, "test_pgd-3") == [2] for name, run in runs().items() if "seed" in name)


def test_a_parent_has_mean_and_sample_deviation_of_its_seeds() -> None:
    for seed, broken in enumerate((1, 2, 6)):
        finished(seed)
        attacked(seed, broken)
    tracking.sync()
    parent = runs()["at_pgd"]
    accuracies = np.array([90.0, 80.0, 40.0])
    assert parent.data.metrics["test_pgd-3"] == pytest.approx(accuracies.mean())
    assert parent.data.metrics["test_worst-case_std"] == pytest.approx(accuracies.std(ddof=1))
    assert parent.data.tags["seeds"] == "0, 1, 2"
    assert "seed" not in parent.data.params


def test_every_run_carries_flat_parameters_data_and_origin() -> None:
    finished(0)
    tracking.sync()
    run = runs()["at_pgd seed 0"]
    wanted = {"method": "at_pgd", "seed": "0", "eps": "0.2", "lr": "0.1", "steps": "2", "selection_steps": "2"}
    assert wanted.items() <= run.data.params.items()
    assert run.data.tags["adt.origin"] == "DVC cache", "no record of making it here"
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert "entropy" not in run.data.metrics, "an empty cell is no measurement"


def test_the_record_of_the_making_becomes_times_and_tags() -> None:
    finished(0)
    live.record(description(0)["key"], {"seconds": 5.0, "finished": 1e9, "machine": {"device": "cpu"}, "commit": "c"})
    live_facts = live.recorded(description(0)["key"]) | {"dirty": False}
    live.record(description(0)["key"], live_facts)
    tracking.sync()
    run = runs()["at_pgd seed 0"]
    assert (run.info.start_time, run.info.end_time) == (999_999_995_000, 1_000_000_000_000)
    assert run.data.tags["machine.device"] == "cpu"
    assert run.data.tags["mlflow.source.git.commit"] == "c"


def test_verdicts_of_another_checkpoint_are_not_this_runs() -> None:
    finished(0)
    attacked(0, 5, checkpoint="of an earlier training")
    tracking.sync()
    assert "test_pgd-3" not in runs()["at_pgd seed 0"].data.metrics


@pytest.mark.parametrize(
    "broken_call",
    [
        "log_batch",
        "log_inputs",
        "create_logged_model",
        "log_model_artifact",
        "finalize_logged_model",
        "log_outputs",
        "log_artifact",
        "log_metric",
        "set_terminated",
    ],
)
def test_a_sync_that_dies_anywhere_is_completed_by_the_next(monkeypatch: pytest.MonkeyPatch, broken_call: str) -> None:
    finished(0)
    attacked(0, 5)

    def die(*arguments: object, **keywords: object) -> None:
        raise MlflowException("gone")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken_call, die)
        with pytest.raises(MlflowException):
            tracking.sync()
    tracking.sync()
    run = runs()["at_pgd seed 0"]
    assert (run.info.status, steps(run)) == ("FINISHED", [1, 2, 3])
    assert run.data.metrics["test_pgd-3"] == 50.0
    assert run.data.params["seed"] == "0" and runs()["at_pgd"].data.params["eps"] == "0.2"
    assert len(run.inputs.dataset_inputs) == 1
    client = MlflowClient(tracking.tracking_uri())
    models = client.search_logged_models([run.info.experiment_id])
    assert [model.status for model in models] == ["READY"]
    assert tracking.sync() == "MLflow: 0 runs added, 0 updated, experiment 'smoke'"


def test_results_are_logged_once_a_state() -> None:
    write_json(Path("results/comparison.json"), {"state": 1})
    tracking.sync()
    tracking.sync()
    write_json(Path("results/comparison.json"), {"state": 2})
    tracking.sync()
    client = MlflowClient(tracking.tracking_uri())
    found = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    assert [run.info.run_name for run in found] == ["results", "results"]


def test_a_server_that_is_away_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    finished(0)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(MlflowException):
            tracking.sync()
    tracking.sync()
    assert steps(runs()["at_pgd seed 0"]) == [1, 2, 3]
