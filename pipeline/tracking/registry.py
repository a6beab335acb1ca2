"""The model registry: the best run of a method, chosen on validation data alone, under the alias `champion`."""

import re
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline import live, params
from pipeline.errors import UserError
from pipeline.tracked import TrackedRun, finished_runs
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.server import answering

ALIAS = "champion"


def register(method: str, name: str | None = None) -> str:
    """Register the best run of a method under `name` (PRESET-METHOD by default) as champion; returns what was done.

    Best: the highest validation accuracy under attack (`val_robust` of metrics.json), then the
    highest natural one, then the lowest seed; test data is not looked at. A model is
    registered once: again, it only gets the alias. `UserError` for a method that the matrix
    does not have or nobody trained, a name that MLflow refuses, a server that does not answer.
    """
    p = params.load()
    best = _best(p, method)
    name = name or f"{p.preset}-{method}"
    if not re.fullmatch(r"[\w .-]+", name):
        raise UserError(f"--name {name}: letters, digits, spaces, '_', '-' and '.' only")
    with live.lock("sync"), answering():
        mirror = Mirror(p)
        mirror.sync(results=False)
        run = mirror.ledger.find(best.key)
        version, new = _version(mirror.client, name, run.data.tags["adt.model"], run.info.run_id, _told(best))
        mirror.client.set_registered_model_alias(name, ALIAS, version.version)
    scores = f"validation natural {_percent(best, 'val_natural')}, robust {_percent(best, 'val_robust')}"
    done = "registered" if new else "was registered already"
    return f"models:/{name}@{ALIAS}: version {version.version} ({method} seed {best.seed}, {scores}) {done}"


def _best(p: params.Params, method: str) -> TrackedRun:
    if method not in p.matrix.methods:
        raise UserError(f"{method}: not in matrix.methods of params.yaml; there are: {', '.join(p.matrix.methods)}")
    runs = [run for run in finished_runs(p) if run.method == method]
    if not runs:
        raise UserError(f"{method}: no seed of it is trained; `python -m pipeline repro` trains it")
    return max(runs, key=lambda run: (run.metrics["val_robust"], run.metrics["val_natural"], -run.seed))


def _told(run: TrackedRun) -> dict[str, str]:
    """Tags of a registered version."""
    scores = {name: str(run.metrics[name]) for name in ("val_robust", "val_natural", "selected_epoch")}
    return {"adt.key": run.key, "method": run.method, "seed": str(run.seed), **scores}


def _version(
    client: MlflowClient, name: str, model_id: str, run_id: str, tags: dict[str, Any]
) -> tuple[ModelVersion, bool]:
    """The registered version that is this logged model, and whether it is new."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
    known = [v for v in client.search_model_versions(f"name = '{name}'") if v.source == f"models:/{model_id}"]
    if known:
        return min(known, key=lambda version: int(version.version)), False
    return client.create_model_version(name, f"models:/{model_id}", run_id, tags, model_id=model_id), True


def _percent(run: TrackedRun, name: str) -> str:
    return f"{100 * run.metrics[name]:.1f} %"
