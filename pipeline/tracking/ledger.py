"""One MLflow experiment as a ledger: every content key is one run in it, whoever writes, however often."""

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipeline import live
from pipeline.tracking import PROJECT_RUN
from pipeline.tracking.server import connect, tracking_uri

BATCH = 900  # MLflow takes 1,000 values a call


class Ledger:
    """Finds, creates and completes the runs of an experiment; counts what it `created` and `updated`.

    `settled` maps the name of every run that this pass found complete to its id.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: MlflowClient = connect()
        self.created = self.updated = 0
        self.settled: dict[str, str] = {}

    @cached_property
    def experiment(self) -> str:
        """Id of the experiment, created at first use."""
        found = self.client.get_experiment_by_name(self.name)
        if found is not None:
            return found.experiment_id
        local = tracking_uri().startswith("sqlite:")
        place = Path("mlruns").absolute().as_uri() if local else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # opens the pages for training runs
        try:
            return self.client.create_experiment(self.name, place, kind)
        except MlflowException:  # somebody else was faster, or it cannot be
            found = self.client.get_experiment_by_name(self.name)
            if found is None:
                raise
            return found.experiment_id

    def find(self, key: str) -> Run | None:
        """The run with a key. Of several the oldest stays and the others are deleted.

        There are several where a server died after creating a run and before saying so, or
        where two machines that share it logged the same parent at once.
        """
        found = self.client.search_runs([self.experiment], f"tags.`adt.key` = '{key}'", max_results=100)
        first, *others = sorted(found, key=_age) or [None]
        for run in others:
            self.client.delete_run(run.info.run_id)
        return first

    def ensure(
        self,
        name: str,
        key: str,
        kind: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        started_ms: int | None = None,
    ) -> Run:
        """The run with this key, with its parameters, tags and data set: found, completed or created.

        The key is set in the call that creates the run, so a kill at any later point is repaired here.
        """
        own = {"adt.key": key, "adt.kind": kind, "preset": self.name, "adt.workspace": live.workspace()}
        own |= {"adt.superseded": "false", **(tags or {})}
        run = self.find(key)
        if run is None:
            born = {"adt.created": f"{time.time():.3f}"}
            if PROJECT_RUN:
                born["adt.project_run"] = PROJECT_RUN
            mine = self.client.create_run(self.experiment, started_ms, own | born, name)
            run = self.find(key) or mine
            self.created += run.info.run_id == mine.info.run_id
        # A first word on these two stands: another workspace may share the run, and a parent may move.
        standing = ("adt.workspace", "adt.superseded")
        self.set_tags(run, {k: v for k, v in own.items() if k not in standing or k not in run.data.tags})
        missing = [Param(k, str(v)) for k, v in params.items() if k not in run.data.params]
        for at in range(0, len(missing), 100):
            self.client.log_batch(run.info.run_id, params=missing[at : at + 100])
        if data and not (run.inputs and run.inputs.dataset_inputs):
            entity = Dataset(data["name"], dataset_digest(data), "local", f"data/{data['name']}")
            context = InputTag("mlflow.data.context", "training and evaluation")
            self.client.log_inputs(run.info.run_id, [DatasetInput(entity, [context])])
        return run

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> bool:
        """Set those tags that `run` does not have with these values; whether there were any."""
        changed = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        if changed:
            self.client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in changed.items()])
            run.data.tags.update(changed)
        return bool(changed)

    def log(self, run: Run, values: Mapping[str, float], step: int, since: int) -> None:
        """Log metrics of one step; `since` (ms) from `since`, so that a repetition is the same entry."""
        metrics = [Metric(name, float(value), since, step) for name, value in values.items()]
        for at in range(0, len(metrics), BATCH):
            self.client.log_batch(run.info.run_id, metrics=metrics[at : at + BATCH])

    def since(self, run: Run, what: str, content: str) -> int:
        """When logging `content` under the name `what` first began (ms): noted in a tag before any of it is logged.

        MLflow keeps a metric once a (name, step, time, value), so what is logged again after a kill is not doubled.
        """
        noted = run.data.tags.get(f"adt.since.{what}", "").split()
        if len(noted) == 2 and noted[0] == content:
            return int(noted[1])
        now = int(time.time() * 1000)
        self.set_tags(run, {f"adt.since.{what}": f"{content} {now}"})
        return now

    def finish(self, run: Run, ended_ms: int | None = None) -> None:
        """Mark a run as finished, unless it is."""
        if run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id, "FINISHED", ended_ms)
        self.settled[run.info.run_name] = run.info.run_id


def dataset_digest(data: Mapping[str, str]) -> str:
    """The data set's hash as far as MLflow keeps one (36 characters)."""
    return data["sha256"][:32]


def _age(run: Run) -> tuple[float, int, str]:
    """An order on which every process agrees: by creation, where it is noted."""
    return float(run.data.tags.get("adt.created", 0)), run.info.start_time, run.info.run_id
