"""One pass over the files, against one MLflow experiment (named after the preset)."""

import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from pipeline import params
from pipeline.files import digest, digest_file
from pipeline.studied import studies
from pipeline.tracked import TrackedRun, finished_runs, result_files, setting_name, spread, unfinished_runs
from pipeline.tracking import studying, superseding, training
from pipeline.tracking.ledger import Ledger
from pipeline.verdicts import WORST_CASE


class Mirror:
    """Completes the runs of a preset: `created` and `updated` count what it did."""

    def __init__(self, p: params.Params) -> None:
        self.p = p
        self.ledger = Ledger(p.preset)

    @property
    def client(self) -> MlflowClient:
        """The client it speaks through."""
        return self.ledger.client

    @property
    def experiment(self) -> str:
        """Id of the preset's experiment, created at first use."""
        return self.ledger.experiment

    @property
    def created(self) -> int:
        """Runs that were not there before."""
        return self.ledger.created

    @property
    def updated(self) -> int:
        """Times that a run was completed."""
        return self.ledger.updated

    def sync(self, results: bool) -> None:
        """Runs that are finished, runs that are training now, their parents, studies, and the results."""
        runs = list(finished_runs(self.p))
        done = {run.key for run in runs}
        runs += [run for run in unfinished_runs() if run.key not in done]
        parents = {run.parent_key: self._parent(run) for run in runs}
        for run in runs:
            training.complete(self.ledger, run, parents[run.parent_key], _lined_up(run.params(), self.p), results)
        for key, parent in parents.items():
            busy = any(run.parent_key == key and not run.checkpoint for run in runs)
            self._summarise(parent)
            if not busy:
                ended = [run.finished_ms for run in runs if run.parent_key == key]
                self.ledger.finish(parent, max(filter(None, ended), default=None))
        for study in studies():
            studying.complete(self.ledger, study)
        if results:
            self._results()
            superseding.mark(self.ledger)

    def _parent(self, run: TrackedRun) -> Run:
        """The run of a method with given parameters, over all seeds."""
        shared = {name: value for name, value in run.params().items() if name != "seed"}
        return self.ledger.ensure(
            run.method, run.parent_key, "method", _lined_up(shared, self.p), started_ms=run.started_ms
        )

    def _summarise(self, parent: Run) -> None:
        """Mean and deviation over the matrix's seeds that are evaluated, on the parent."""
        mine = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        wanted = {str(seed) for seed in self.p.matrix.seeds}
        runs = self.client.search_runs([self.experiment], mine, max_results=1000)
        runs = [r for r in runs if r.data.params.get("seed") in wanted and "adt.verdicts" in r.data.tags]
        values = spread([{k: v for k, v in r.data.metrics.items() if k.startswith("test_")} for r in runs])
        # MLflow's compare page opens on the metric that was logged first.
        values = dict(sorted(values.items(), key=lambda metric: metric[0] != f"test_{WORST_CASE}"))
        seeds = ", ".join(sorted((r.data.params["seed"] for r in runs), key=int))
        new = {name: value for name, value in values.items() if parent.data.metrics.get(name) != value}
        if new:
            now = int(time.time() * 1000)
            self.client.log_batch(parent.info.run_id, metrics=[Metric(k, v, now, 0) for k, v in new.items()])
        told = bool(values) and self.ledger.set_tags(parent, {"seeds": seeds})
        self.ledger.updated += bool(new) or told

    def _results(self) -> None:
        """One run a state of results/, with its tables and figures as artifacts."""
        files = result_files()
        if (Path("results") / "comparison.json") not in files:
            return
        key = digest([[str(file), digest_file(file)] for file in files])
        run = self.ledger.ensure("results", key, "results", {})
        if run.info.status != "FINISHED":
            for file in files:
                folder = str(file.parent.relative_to("results"))
                self.client.log_artifact(run.info.run_id, str(file), None if folder == "." else folder)
        self.ledger.finish(run)


def _lined_up(values: dict[str, Any], p: params.Params) -> dict[str, Any]:
    """Parameters with "-" for those that other methods of the matrix have and this one has not.

    MLflow's compare page then has a value in every cell, and no axis with a point called "unknown".
    """
    names = {setting_name(name) for m in p.matrix.methods for name in p.method(m).model_dump(by_alias=True)}
    return dict.fromkeys(sorted(names), "-") | values
