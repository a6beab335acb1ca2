"""The MLflow run of one (method, seed): its curves, model, evaluation, and what DVC and the health checks say."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run

from pipeline.files import digest, digest_file, read_json
from pipeline.tracked import TrackedRun
from pipeline.tracking.ledger import BATCH, Ledger, dataset_digest

MODEL_FILES = ("model.safetensors", "run.json", "metrics.json")


def complete(ledger: Ledger, run: TrackedRun, parent: Run, params: dict[str, Any], quiet: bool) -> None:
    """Create or complete the run of one (method, seed); `quiet`: no stage is at work, so results/ belongs to it."""
    found = ledger.ensure(
        f"{run.method} seed {run.seed}",
        run.key,
        "run",
        params,
        {"mlflow.parentRunId": parent.info.run_id, **run.tags()},
        run.description["data"],
        run.started_ms,
    )
    tags = found.data.tags
    if found.info.status == "FINISHED" and not run.checkpoint:
        return  # being reproduced: the record stands
    changed = tags.get("adt.epochs") != str(len(run.history)) and _history(ledger, found, run)
    if run.checkpoint and tags.get("adt.model") is None:
        _model(ledger, found, run)
        changed = True
    if run.verdicts and tags.get("adt.verdicts") != run.verdicts_digest:
        _evaluation(ledger, found, run)
        changed = True
    if run.checkpoint:
        changed |= ledger.set_tags(found, run.locked())
        changed |= quiet and _health(ledger, found, run)
    if found.info.status != run.status:
        _set_status(ledger, found, run)
    if run.checkpoint:
        ledger.settled[found.info.run_name] = found.info.run_id
    ledger.updated += bool(changed)


def _set_status(ledger: Ledger, found: Run, run: TrackedRun) -> None:
    if run.status == "RUNNING":  # killed before, resumed now
        ledger.client.update_run(found.info.run_id, status="RUNNING")
    else:
        ledger.client.set_terminated(found.info.run_id, run.status, run.finished_ms)


def _history(ledger: Ledger, found: Run, run: TrackedRun) -> bool:
    """Log the epochs that are not there yet, an epoch never in two calls: MLflow keeps all of a call or nothing."""
    logged = ledger.client.get_metric_history(found.info.run_id, "val_robust")
    last = max((metric.step for metric in logged), default=0)
    now = int(time.time() * 1000)
    new = [row for row in run.history if int(row["epoch"]) > last]
    epochs = [
        [Metric(k, float(v), now, int(row["epoch"])) for k, v in row.items() if k != "epoch" and v != ""] for row in new
    ]
    for batch in _batches(epochs):
        ledger.client.log_batch(found.info.run_id, metrics=batch)
    ledger.set_tags(found, {"adt.epochs": str(len(run.history))})
    return bool(new)


def _batches(epochs: list[list[Metric]]) -> Iterator[list[Metric]]:
    """Whole epochs together, as many as MLflow takes in a call."""
    batch: list[Metric] = []
    for epoch in epochs:
        if batch and len(batch) + len(epoch) > BATCH:
            yield batch
            batch = []
        batch = batch + epoch
    if batch:
        yield batch


def _model(ledger: Ledger, found: Run, run: TrackedRun) -> None:
    """The selected checkpoint as a logged model, beside it run.json, its scores and the description of the data."""
    client, run_id = ledger.client, found.info.run_id
    model_id = _logged_model(ledger, found, run).model_id
    meta = _data_meta(run)
    for file in [*(run.folder / name for name in MODEL_FILES), *([meta] if meta else [])]:
        client.log_model_artifact(model_id, str(file))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    linked = client.get_run(run_id).outputs.model_outputs
    if model_id not in [output.model_id for output in linked]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=run.metrics["selected_epoch"])])
    for name in ("history.csv", "run.json"):
        client.log_artifact(run_id, str(run.folder / name))
    for batch in _batches([[Metric(*gauge)] for gauge in run.gauges()]):
        client.log_batch(run_id, metrics=batch)
    ledger.log(found, run.totals(), 0, ledger.since(found, "totals", run.key[:16]))
    ledger.set_tags(found, {"adt.model": model_id, **run.circumstances()})


def _data_meta(run: TrackedRun) -> Path | None:
    """The description (shape, classes, counts) of the very data set it was trained on, if that is prepared here."""
    data = run.description["data"]
    path = Path("data") / data["name"] / "meta.json"
    return path if path.exists() and read_json(path)["sha256"] == data["sha256"] else None


def _logged_model(ledger: Ledger, found: Run, run: TrackedRun) -> LoggedModel:
    """The one logged model of this name: found (the oldest stays, as with runs) or created."""
    client, name = ledger.client, f"{run.method}-seed-{run.seed}-{run.key[:8]}"
    known = client.search_logged_models([ledger.experiment], f"name = '{name}'")
    if not known:
        tags = {"adt.key": run.key, "adt.checkpoint": digest_file(run.checkpoint)}
        params = {k: str(v) for k, v in run.params().items()}
        return client.create_logged_model(ledger.experiment, name, found.info.run_id, tags, params, "checkpoint")
    first, *others = sorted(known, key=lambda model: (model.creation_timestamp, model.model_id))
    for model in others:
        client.delete_logged_model(model.model_id)
    return first


def _evaluation(ledger: Ledger, found: Run, run: TrackedRun) -> None:
    """Test accuracies, on the run and on its logged model, with the data they were measured on."""
    data, step = run.description["data"], run.metrics["selected_epoch"]
    since = ledger.since(found, "evaluation", run.verdicts_digest[:16])
    for name, value in run.accuracies().items():
        ledger.client.log_metric(
            found.info.run_id,
            name,
            value,
            timestamp=since,
            step=step,
            model_id=found.data.tags["adt.model"],
            dataset_name=data["name"],
            dataset_digest=dataset_digest(data),
        )
    ledger.log(found, run.attack_costs(), step, since)
    ledger.client.log_artifact(found.info.run_id, str(run.verdicts))
    ledger.set_tags(found, {"adt.verdicts": run.verdicts_digest})


def _health(ledger: Ledger, found: Run, run: TrackedRun) -> bool:
    """Every check's figure as `health_CHECK`, and the tag `health`: passed, or the names of failed checks."""
    checks = run.health()
    if not checks:
        return False
    failed = [name for name, check in checks.items() if check["passed"] is False]
    told = {"health": ", ".join(failed) or "passed", "adt.health": digest(checks)[:16]}
    if told.items() <= found.data.tags.items():
        return False
    figures: dict[str, Any] = {f"health_{k}": c["figure"] for k, c in checks.items() if c["figure"] is not None}
    ledger.log(found, figures, run.metrics["selected_epoch"], ledger.since(found, "health", told["adt.health"]))
    return ledger.set_tags(found, told)
