"""MLflow as a mirror of the workspace's files; the only module that imports MLflow.

`sync` reads what stages wrote and creates or completes the runs that are missing.
Every run carries the tag `adt.key`, a hash of what made it, so a second sync logs
nothing, and a stage that DVC served from its cache is mirrored like any other.
"""

import os
import socket
import sys
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is away is found out in seconds, not in MLflow's default of over a minute.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
# Set by `mlflow run`; with it every run here would try to be that one run.
PROJECT_RUN = os.environ.pop("MLFLOW_RUN_ID", None)

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)

from pipeline import live, params
from pipeline.errors import UserError
from pipeline.files import digest, digest_file
from pipeline.tracked import TrackedRun, finished_runs, result_files, spread, unfinished_runs

IDLE_SECONDS = 8.0  # how long a follower outlives the last stage: DVC's pauses between stages are shorter
POLL_SECONDS = 2.0


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the workspace's own database, where a bare `mlflow ui` looks too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def sync(results: bool = True) -> str:
    """Complete MLflow from the files; returns one line saying what was done.

    `results` also logs the state of results/, which is worth a run only between reproductions.
    """
    with live.lock("sync"):
        mirror = Mirror(params.load())
        mirror.sync(results)
    return f"MLflow: {mirror.created} runs added, {mirror.updated} updated, experiment {mirror.p.preset!r}"


def follow() -> None:
    """Sync whenever files change, until no stage has been at work for `IDLE_SECONDS`. One follower a workspace."""
    with live.lock("follower", wait=False) as mine:
        if not mine:
            return
        seen, last_present = None, time.monotonic()
        while time.monotonic() - last_present < IDLE_SECONDS:
            if live.anyone_present():
                last_present = time.monotonic()
            state = _file_state()
            if state != seen:
                try:
                    sync(results=False)
                    seen = state
                except Exception as error:  # the follower must outlive a file seen half-way or a server that is away
                    print(f"{time.ctime()}: will try again: {error}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)
        sync()


def serve(port: int) -> None:
    """Complete MLflow, then become `mlflow ui` on the loopback interface; returns only by exception."""
    _check_port(port)
    print(sync())
    runs = f"experiments/{Mirror(params.load()).experiment}/runs?workflowType=machine_learning"
    print(f"MLflow: http://127.0.0.1:{port}/#/{runs} (Ctrl-C ends it)", flush=True)
    command = ["mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port), "--workers", "1"]
    os.execvp(sys.executable, [sys.executable, "-m", *command])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used ({error}); choose another") from None


class Mirror:
    """One pass over the files, against one MLflow experiment (named after the preset)."""

    def __init__(self, p: params.Params) -> None:
        self.p = p
        self.client = MlflowClient(tracking_uri())
        self.created = self.updated = 0

    @cached_property
    def experiment(self) -> str:
        """Id of the preset's experiment, created at first use."""
        found = self.client.get_experiment_by_name(self.p.preset)
        if found is not None:
            return found.experiment_id
        local = tracking_uri().startswith("sqlite:")
        return self.client.create_experiment(
            self.p.preset,
            Path("mlruns").absolute().as_uri() if local else None,
            {"mlflow.experimentKind": "custom_model_development"},  # opens the pages for training runs
        )

    def sync(self, results: bool) -> None:
        """Runs that are finished, runs that are training now, their parents, and the results."""
        runs = list(finished_runs(self.p))
        done = {run.key for run in runs}
        runs += [run for run in unfinished_runs() if run.key not in done]
        parents = {run.parent_key: self._parent(run) for run in runs}
        for run in runs:
            self._child(run, parents[run.parent_key])
        for key, parent in parents.items():
            training = any(run.parent_key == key and not run.checkpoint for run in runs)
            self._summarise(parent, training)
        if results:
            self._results()

    def _parent(self, run: TrackedRun) -> Run:
        """The run of a method with given parameters, over all seeds."""
        shared = {name: value for name, value in run.params().items() if name != "seed"}
        return self._ensure(run.method, run.parent_key, "method", shared)

    def _child(self, run: TrackedRun, parent: Run) -> None:
        """Create or complete the run of one (method, seed)."""
        found = self._ensure(
            f"{run.method} seed {run.seed}",
            run.key,
            "run",
            run.params(),
            {"mlflow.parentRunId": parent.info.run_id, **run.tags()},
            run.description["data"],
            run.started_ms,
        )
        tags, run_id = found.data.tags, found.info.run_id
        if found.info.status == "FINISHED" and not run.checkpoint:
            return  # being reproduced: the record stands
        changed = tags.get("adt.epochs") != str(len(run.history)) and self._history(run_id, run)
        if run.checkpoint and tags.get("adt.model") is None:
            self._model(run_id, run)
            changed = True
        if run.verdicts and tags.get("adt.verdicts") != run.verdicts_digest:
            self._evaluation(run_id, run, tags.get("adt.model") or self._tag(run_id, "adt.model"))
            changed = True
        if found.info.status != run.status:
            self._set_status(run_id, run)
        self.updated += bool(changed)

    def _set_status(self, run_id: str, run: TrackedRun) -> None:
        if run.status == "RUNNING":  # killed before, resumed now
            self.client.update_run(run_id, status="RUNNING")
        else:
            self.client.set_terminated(run_id, run.status, run.finished_ms)

    def _history(self, run_id: str, run: TrackedRun) -> bool:
        """Log the epochs that are not there yet."""
        logged = self.client.get_metric_history(run_id, "val_robust")
        last = max((metric.step for metric in logged), default=0)
        now = int(time.time() * 1000)
        new = [row for row in run.history if int(row["epoch"]) > last]
        metrics = [
            Metric(name, float(value), now, int(row["epoch"]))
            for row in new
            for name, value in row.items()
            if name != "epoch" and value != ""
        ]
        for part in _parts(metrics, 900):
            self.client.log_batch(run_id, metrics=part)
        self._set_tags(run_id, {"adt.epochs": str(len(run.history))})
        return bool(new)

    def _model(self, run_id: str, run: TrackedRun) -> None:
        """The selected checkpoint as a logged model, with run.json beside it."""
        name = f"{run.method}-seed-{run.seed}-{run.key[:8]}"
        known = self.client.search_logged_models([self.experiment], f"name = '{name}'")
        if known:
            model_id = known[0].model_id
        else:
            tags = {"adt.key": run.key, "adt.checkpoint": digest_file(run.checkpoint)}
            model = self.client.create_logged_model(
                self.experiment, name, run_id, tags, {k: str(v) for k, v in run.params().items()}, "checkpoint"
            )
            model_id = model.model_id
        for file in ("model.safetensors", "run.json"):
            self.client.log_model_artifact(model_id, str(run.folder / file))
        self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        linked = self.client.get_run(run_id).outputs.model_outputs
        if model_id not in [output.model_id for output in linked]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=run.metrics["selected_epoch"])])
        for file in ("history.csv", "run.json"):
            self.client.log_artifact(run_id, str(run.folder / file))
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, 0) for name, value in run.totals().items()]
        self.client.log_batch(run_id, metrics=metrics)
        self._set_tags(run_id, {"adt.model": model_id, **run.circumstances()})

    def _evaluation(self, run_id: str, run: TrackedRun, model_id: str) -> None:
        """Test accuracies, on the run and on its logged model, with the data they were measured on."""
        data = run.description["data"]
        for name, value in run.accuracies().items():
            self.client.log_metric(
                run_id,
                name,
                value,
                step=run.metrics["selected_epoch"],
                model_id=model_id,
                dataset_name=data["name"],
                dataset_digest=_dataset_digest(data),
            )
        self.client.log_artifact(run_id, str(run.verdicts))
        self._set_tags(run_id, {"adt.verdicts": run.verdicts_digest})

    def _summarise(self, parent: Run, training: bool) -> None:
        """Mean and deviation over the matrix's seeds that are evaluated, on the parent."""
        mine = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        wanted = {str(seed) for seed in self.p.matrix.seeds}
        runs = self.client.search_runs([self.experiment], mine, max_results=1000)
        runs = [r for r in runs if r.data.params["seed"] in wanted and "adt.verdicts" in r.data.tags]
        values = spread([{k: v for k, v in r.data.metrics.items() if k.startswith("test_")} for r in runs])
        seeds = ", ".join(sorted((r.data.params["seed"] for r in runs), key=int))
        if values and (values != parent.data.metrics or parent.data.tags.get("seeds") != seeds):
            now = int(time.time() * 1000)
            self.client.log_batch(parent.info.run_id, metrics=[Metric(k, v, now, 0) for k, v in values.items()])
            self._set_tags(parent.info.run_id, {"seeds": seeds})
            self.updated += 1
        if not training and parent.info.status != "FINISHED":
            self.client.set_terminated(parent.info.run_id, "FINISHED")

    def _results(self) -> None:
        """One run a state of results/, with its tables and figures as artifacts."""
        files = result_files()
        if (Path("results") / "comparison.json") not in files:
            return
        key = digest([[str(file), digest_file(file)] for file in files])
        found = self._find(key)
        if found is not None and found.info.status == "FINISHED":
            return
        run_id = self._ensure("results", key, "results", {}).info.run_id
        for file in files:
            folder = str(file.parent.relative_to("results"))
            self.client.log_artifact(run_id, str(file), None if folder == "." else folder)
        self.client.set_terminated(run_id, "FINISHED")

    def _find(self, key: str) -> Run | None:
        found = self.client.search_runs([self.experiment], f"tags.`adt.key` = '{key}'", max_results=1)
        return found[0] if found else None

    def _ensure(
        self,
        name: str,
        key: str,
        kind: str,
        shared: dict[str, Any],
        tags: dict[str, str] | None = None,
        data: dict[str, str] | None = None,
        started_ms: int | None = None,
    ) -> Run:
        """The run with this key, with its parameters and data set: found, completed or created.

        The key is set in the call that creates the run, so a kill at any later point is repaired here.
        """
        run = self._find(key)
        if run is None:
            own = {"adt.key": key, "adt.kind": kind, "preset": self.p.preset, **(tags or {})}
            if PROJECT_RUN:
                own["adt.project_run"] = PROJECT_RUN
            run = self.client.create_run(self.experiment, started_ms, own, name)
            self.created += 1
        run_id = run.info.run_id
        if shared and not run.data.params:
            self.client.log_batch(run_id, params=[Param(k, str(v)) for k, v in shared.items()])
        if data and not (run.inputs and run.inputs.dataset_inputs):
            entity = Dataset(data["name"], _dataset_digest(data), "local", f"data/{data['name']}")
            context = InputTag("mlflow.data.context", "training and evaluation")
            self.client.log_inputs(run_id, [DatasetInput(entity, [context])])
        return run

    def _tag(self, run_id: str, name: str) -> str:
        return self.client.get_run(run_id).data.tags[name]

    def _set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _dataset_digest(data: dict[str, str]) -> str:
    return data["sha256"][:32]  # MLflow keeps 36 characters


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _file_state() -> list[tuple[str, int]]:
    """Names and times of everything that `sync` reads."""
    watched = [
        *Path("runs").rglob("metrics.json"),
        *Path("verdicts").rglob("*.npz"),
        *live.WORK.glob("train/*/history.csv"),
        *result_files(),
    ]
    state = []
    for path in watched:
        try:
            state.append((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:  # DVC removes outputs before it runs a stage
            continue
    return sorted(state)
