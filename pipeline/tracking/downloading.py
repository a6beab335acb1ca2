"""Runs that MLflow holds, back as files, for comparisons of any runs."""

import os
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.errors import UserError
from pipeline.tracking.server import answering, connect, tracking_uri


def download(address: str, folder: Path) -> list[tuple[str, Path, dict[str, float], dict[str, str]]]:
    """Runs that MLflow holds: for each its id, a folder under `folder` with its files, its metrics and its tags.

    `address`: RUN_ID, or EXPERIMENT/NAME for all runs of that name; the run of a method stands
    for those of its seeds. `UserError` where there is none with verdicts, or MLflow cannot be reached.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("mlflow.db").exists():
        raise UserError(f"mlflow:{address}: no such run: no mlflow.db here, and MLFLOW_TRACKING_URI names no server")
    with answering():
        try:
            return _downloaded(connect(), address, folder)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(f"mlflow:{address}: {str(error).splitlines()[0]}") from error


def _downloaded(
    client: MlflowClient, address: str, folder: Path
) -> list[tuple[str, Path, dict[str, float], dict[str, str]]]:
    runs = [child for run in _at_address(client, address) for child in _seeds_of(client, run)]
    if not runs:
        raise UserError(f"mlflow:{address}: no such run at {tracking_uri()}, or none of its seeds has verdicts there")
    found = []
    for run in runs:
        files = folder / run.info.run_id
        files.mkdir(exist_ok=True)
        for name in ("run.json", "history.csv", f"seed-{run.data.params['seed']}.npz"):
            client.download_artifacts(run.info.run_id, name, str(files))
        found.append((run.info.run_id, files, run.data.metrics, run.data.tags))
    return found


def _at_address(client: MlflowClient, address: str) -> list[Run]:
    experiment, _, name = address.rpartition("/")
    if not experiment:
        return [client.get_run(address)]
    found = client.get_experiment_by_name(experiment)
    if found is None or "'" in name:
        return []
    return list(client.search_runs([found.experiment_id], f"attributes.run_name = '{name}'"))


def _seeds_of(client: MlflowClient, run: Run) -> list[Run]:
    """The runs with verdicts among a method's seeds, or the run itself where it is one."""
    runs = [run]
    if run.data.tags.get("adt.kind") == "method":
        children = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        runs = list(client.search_runs([run.info.experiment_id], children))
    return [run for run in runs if "adt.verdicts" in run.data.tags]
