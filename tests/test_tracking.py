"""MLflow as a mirror: complete, without repetition, whatever happened on the way."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from small_workspace import attacked, description, finished, make, training

from pipeline import live, params, tracking
from pipeline.errors import UserError
from pipeline.files import digest_file, read_json, write_json, write_text
from pipeline.tracking.superseding import CURRENT

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with one method and three seeds in its matrix, and a database of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make()
    return tmp_path


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


def test_samples_of_the_gpu_become_system_metrics_once() -> None:
    finished(0)
    facts = {"seconds": 20.0, "finished": 1e9, "machine": {"device": "cuda"}, "gpu_memory_peak_mib": 512.5}
    live.record(
        description(0)["key"], facts | {"gauges": [[1e9 - 20, 35.0, 1024.0, 300.5], [1e9 - 10, 90.0, 2048.0, 600]]}
    )
    tracking.sync()
    tracking.sync()
    run = runs()["at_pgd seed 0"]
    client = MlflowClient(tracking.tracking_uri())
    used = client.get_metric_history(run.info.run_id, "system/gpu_0_utilization_percentage")
    assert [(m.value, m.timestamp, m.step) for m in used] == [(35, 999999980000, 0), (90, 999999990000, 1)]
    assert run.data.metrics["system/gpu_0_power_usage_watts"] == 600
    assert run.data.metrics["gpu_memory_peak_mib"] == 512.5


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
        with pytest.raises(UserError, match="MLflow at"):
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
        with pytest.raises(UserError, match="MLflow at"):
            tracking.sync()
    tracking.sync()
    assert steps(runs()["at_pgd seed 0"]) == [1, 2, 3]


def test_runs_of_different_methods_have_the_same_parameters() -> None:
    """What a method does not have is "-", so that MLflow's compare page has no gap and no "unknown"."""
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("methods: [at_pgd]\n", "methods: [at_pgd, adt_exp]\n"))
    assert len(params.load().matrix.methods) == 2
    finished(0)
    other = description(0, generation=1) | {
        "method": "adt_exp",
        "method_params": {"lam": 0.1, "steps": 2, "hinge": None},
    }
    shutil.copytree("runs/at_pgd", "runs/adt_exp")
    write_json(Path("runs/adt_exp/seed-0/run.json"), read_json(Path("runs/at_pgd/seed-0/run.json")) | other)
    tracking.sync()
    point, spread = (runs()[name].data.params for name in ("at_pgd seed 0", "adt_exp seed 0"))
    assert point.keys() == spread.keys() and runs()["at_pgd"].data.params.keys() == runs()["adt_exp"].data.params.keys()
    assert (point["lam"], spread["lam"], spread["step_size"]) == ("-", "0.1", "-")
    differing = sorted(name for name in point if point[name] != spread[name])
    assert differing[:2] == ["lam", "method"], "the first axes that the page shows"


# What DVC says


def lock(stage: str, files: list[str], params: dict[str, Any] | None = None) -> None:
    """A dvc.lock with one stage whose outputs are these files as they are now."""
    outs = [{"path": file, "md5": hashlib.md5(Path(file).read_bytes()).hexdigest()} for file in files]
    entry = {"cmd": "x", "deps": [{"path": "code.py", "md5": "0"}], "params": {"params.yaml": params or {}}}
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {stage: entry | {"outs": outs}}}))


def test_a_run_carries_its_stage_and_the_md5_of_its_outputs_once_dvc_has_recorded_them() -> None:
    finished(0)
    tracking.sync()
    assert not [tag for tag in runs()["at_pgd seed 0"].data.tags if tag.startswith("dvc.")]
    files = [f"runs/at_pgd/seed-0/{name}" for name in ("run.json", "model.safetensors")]
    lock("train@at_pgd-0", files)
    assert "0 runs added, 1 updated" in tracking.sync()
    tags = runs()["at_pgd seed 0"].data.tags
    assert tags["dvc.train"] == "train@at_pgd-0"
    assert tags[f"dvc.md5.{files[1]}"] == hashlib.md5(b"weights 0 0").hexdigest()


def test_a_record_of_dvc_that_is_of_other_files_is_not_believed() -> None:
    finished(0)
    lock("train@at_pgd-0", ["runs/at_pgd/seed-0/run.json"])
    finished(0, generation=1)
    tracking.sync()
    assert "dvc.train" not in runs()["at_pgd seed 0"].data.tags


# Studies


def lambda_table(rows: list[str]) -> None:
    header = "method,lam,tau,seed,val_robust,natural,pgd-3,worst-case,entropy,code_length\n"
    write_text(Path("results/ablation/lambda.csv"), header + "\n".join(rows) + "\n")


GRID = [
    "adt_exp,0,,0,0.5,0.98,0.6,0.5,-2,",
    "adt_exp,0,,1,0.6,0.96,0.6,0.6,-2,",
    "adt_exp,0.1,,0,0.7,0.9,0.6,0.5,-1,",
    "adt_exp,0.1,,1,0.6,0.8,0.7,0.7,-1,",
]


def test_a_study_is_a_parent_with_a_child_a_trial_once() -> None:
    lambda_table(GRID)
    assert "5 runs added" in tracking.sync()
    assert "0 runs added, 0 updated" in tracking.sync()
    found = runs()
    parent, trial = found["lambda study"], found["lambda study: adt_exp lam 0.1 seed 1"]
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trial.data.params == {"method": "adt_exp", "lam": "0.1", "seed": "1"}
    assert trial.data.metrics == {
        "val_robust": 0.6, "test_natural": 80, "test_pgd-3": 70, "test_worst-case": 70, "entropy": -1,
    }  # fmt: skip
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_the_parent_of_a_study_shows_the_point_that_validation_chose() -> None:
    """Not the reference, however good it is, and not the better of another threshold's single runs."""
    reference = ["at_pgd,,,0,0.9,0.98,0.9,0.9,,", "at_pgd,,,1,0.9,0.98,0.9,0.9,,"]
    implicit = ["adt_imp_am,0.1,0.5,0,0.8,0.9,0.6,0.5,-1,0.4", "adt_imp_am,0.1,0.5,1,0.4,0.9,0.6,0.5,-1,0.6"]
    lambda_table([*reference, *GRID, *implicit])
    tracking.sync()
    parent = runs()["lambda study"]
    assert parent.data.params == {"method": "adt_exp", "lam": "0.1"}
    assert parent.data.metrics["val_robust"] == pytest.approx(0.65)
    assert parent.data.metrics["test_natural"] == pytest.approx(85)
    single = runs()["lambda study: adt_imp_am lam 0.1 tau 0.5 seed 1"]
    assert single.data.params["tau"] == "0.5" and single.data.metrics["code_length"] == 0.6


def search_table(rows: list[str]) -> None:
    header = (
        "number,state,method,seed,lam,schedule,val_robust,val_natural,gradient_evaluations,selected_epoch,pruned_at"
    )
    write_text(Path("results/search/trials.csv"), "\n".join([header, *rows]) + "\n")


def test_a_search_is_a_parent_that_shows_the_chosen_trial_with_a_child_for_every_trial() -> None:
    search_table(
        [
            "0,complete,adt_exp,0,0.1,cosine,0.5,0.9,2000,1,",
            "1,pruned,adt_exp,0,0.2,constant,0.8,0.9,500,1,1",
            "2,complete,adt_exp,0,0.3,constant,0.5,0.8,1000,2,",
            "3,diverged,adt_exp,0,9,constant,,,,,",
        ]
    )
    assert "5 runs added" in tracking.sync()
    assert "0 runs added, 0 updated" in tracking.sync()
    parent, lost = runs()["search"], runs()["search: trial 3"]
    assert parent.data.params["number"] == "2" and parent.data.params["lam"] == "0.3"
    assert parent.data.metrics["gradient_evaluations"] == 1000
    assert lost.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert lost.data.params["state"] == "diverged" and lost.data.metrics == {}
    assert runs()["search: trial 1"].data.metrics["pruned_at"] == 1
    lock("search", ["results/search/trials.csv"], {"search": {"seed": 7, "trials": 4}})
    tracking.sync()
    assert (runs()["search"].data.params["seed"], runs()["search"].data.params["trials"]) == ("0", "4")


def test_a_study_gets_its_settings_from_dvcs_record_and_stays_the_same_study() -> None:
    lambda_table(GRID)
    tracking.sync()
    lock("ablation", ["results/ablation/lambda.csv"], {"ablation": {"epochs": 4}})
    assert "0 runs added" in tracking.sync()
    parent = runs()["lambda study"]
    assert parent.data.params["epochs"] == "4" and parent.data.tags["dvc.stage"] == "ablation"


def test_degeneracy_is_a_study_of_two_methods_whose_parent_has_the_mean_agreements() -> None:
    header = "method,seed,natural,pgd-3,worst-case,agreement_with_at_pgd,agreement_of_at_pgd_seeds"
    rows = [
        "at_pgd,0,1,0.6,0.6,,0.9",
        "at_pgd,1,1,0.6,0.6,,0.8",
        "adt_exp,0,1,0.5,0.5,0.7,",
        "adt_exp,1,1,0.5,0.5,0.5,",
    ]
    write_text(Path("results/degeneracy/accuracy.csv"), "\n".join([header, *rows]) + "\n")
    tracking.sync()
    assert runs()["degeneracy"].data.metrics == {
        "agreement_of_at_pgd_seeds": pytest.approx(0.85),
        "agreement_with_at_pgd": pytest.approx(0.6),
    }
    assert runs()["degeneracy: adt_exp seed 1"].data.params == {"method": "adt_exp", "seed": "1"}


# Health


def examined(seed: int, *failed: str) -> None:
    checkpoint = digest_file(Path(f"runs/at_pgd/seed-{seed}/model.safetensors"))
    write_json(Path(f"probes/at_pgd/seed-{seed}.json"), {"checkpoint": checkpoint})
    checks = {name: {"figure": 0.25, "passed": name not in failed} for name in ("repeatable", "gradients")}
    checks["unbounded"] = {"figure": None, "passed": None}
    write_json(Path("results/health.json"), {"cells": {"at_pgd": {str(seed): checks}}})


@pytest.mark.parametrize(("failed", "told"), [((), "passed"), (("gradients",), "gradients")])
def test_the_health_of_a_run_is_figures_and_a_tag(failed: tuple[str, ...], told: str) -> None:
    finished(0)
    examined(0, *failed)
    tracking.sync()
    run = runs()["at_pgd seed 0"]
    assert run.data.tags["health"] == told
    assert {k: v for k, v in run.data.metrics.items() if k.startswith("health")} == {
        "health_repeatable": 0.25,
        "health_gradients": 0.25,
    }
    assert "0 updated" in tracking.sync()


def test_the_health_of_an_earlier_checkpoint_is_not_this_runs() -> None:
    finished(0)
    examined(0)
    finished(0, generation=1)
    tracking.sync()
    assert "health" not in runs()["at_pgd seed 0"].data.tags


# Yesterday's runs


def superseded() -> dict[str, list[str]]:
    """Key of every run by name: those that the documented filter hides."""
    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name("smoke").experiment_id
    every = {run.info.run_id: run for run in client.search_runs([experiment])}
    shown = {run.info.run_id for run in client.search_runs([experiment], CURRENT)}
    hidden: dict[str, list[str]] = {}
    for run_id in every.keys() - shown:
        hidden.setdefault(every[run_id].info.run_name, []).append(every[run_id].data.tags["adt.key"])
    return hidden


def test_a_run_is_superseded_when_a_newer_one_of_its_seed_is_finished_and_current_again_when_set_back() -> None:
    finished(0)
    finished(1)
    tracking.sync()
    assert superseded() == {}
    finished(0, generation=1)
    tracking.sync()
    assert superseded()["at_pgd seed 0"] == [description(0)["key"]] and "at_pgd seed 1" not in superseded()
    finished(0)
    tracking.sync()
    assert superseded()["at_pgd seed 0"] == [description(0, generation=1)["key"]]


def test_a_training_under_way_supersedes_nothing() -> None:
    finished(0)
    tracking.sync()
    for file in Path("runs/at_pgd/seed-0").iterdir():
        file.unlink()
    training(0, 1, generation=1)
    tracking.sync()
    assert superseded() == {}


def test_the_trials_of_a_superseded_study_go_with_it() -> None:
    lambda_table(GRID)
    tracking.sync()
    lambda_table(GRID[:2])
    tracking.sync()
    assert {name: len(keys) for name, keys in superseded().items()} == {
        "lambda study": 1,
        **{f"lambda study: adt_exp lam {lam} seed {seed}": 1 for lam in ("0", "0.1") for seed in (0, 1)},
    }


def test_runs_of_another_workspace_on_a_shared_server_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri())
    finished(0)
    tracking.sync()
    (live.WORK / "workspace").unlink()
    finished(0, generation=1)
    tracking.sync()
    assert superseded() == {}


# One run a key


def test_a_run_that_a_dying_server_created_twice_is_one_again() -> None:
    finished(0)
    tracking.sync()
    client = MlflowClient(tracking.tracking_uri())
    first = runs()["at_pgd seed 0"]
    tags = {name: first.data.tags[name] for name in ("adt.key", "adt.kind", "adt.workspace")}
    client.create_run(first.info.experiment_id, None, tags | {"adt.created": "9e9"}, "at_pgd seed 0")
    tracking.sync()
    assert runs()["at_pgd seed 0"].info.run_id == first.info.run_id


# Training does not wait


def test_training_does_not_know_the_tracker() -> None:
    code = "import sys, stages.train; print(sorted({'mlflow', 'pipeline.tracking'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_server_that_never_answers_delays_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The follower is a process of its own: a stage starts it and goes on."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kind: started.append((command, kind)))
    monkeypatch.setenv(live.SWITCH, "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with live.presence():
            training(0, 1)
        assert time.monotonic() - began < 1
    [(command, kind)] = started
    assert command[1:] == ["-m", "pipeline", "track", "--follow"] and kind["start_new_session"]


def test_the_first_use_of_an_empty_database_may_be_by_several_processes(tmp_path: Path) -> None:
    """Two workspaces, one database: MLflow's tables are made once."""
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    code = "from pipeline import tracking; tracking.sync()"
    started = []
    for seed in (0, 1):
        folder = tmp_path / f"workspace-{seed}"
        folder.mkdir()
        os.chdir(folder)
        make(database=False)
        finished(seed)
        environment = os.environ | {"MLFLOW_TRACKING_URI": database, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=environment))
    assert [process.wait() for process in started] == [0, 0]
    found = MlflowClient(database).search_runs([MlflowClient(database).get_experiment_by_name("smoke").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["at_pgd", "at_pgd seed 0", "at_pgd seed 1"]


@pytest.mark.parametrize("password", ["", ":secret"])
def test_an_error_tells_where_but_no_password(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me{password}@127.0.0.1:9")
    with pytest.raises(UserError, match="MLflow at http://me.*no answer") as caught:
        tracking.sync()
    assert "secret" not in str(caught.value)
