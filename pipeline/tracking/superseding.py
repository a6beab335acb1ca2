"""Which runs of a workspace are of yesterday: one filter hides them, none is deleted."""

from collections.abc import Iterator

from mlflow.entities import Run

from pipeline import live
from pipeline.tracking.ledger import Ledger
from pipeline.tracking.server import own_database

TAG = "adt.superseded"
CURRENT = f"tags.`{TAG}` = 'false'"  # the filter for MLflow's search box


def mark(ledger: Ledger) -> None:
    """Tag every run of this workspace `adt.superseded`: true where a newer one of the same name is complete.

    A run that is complete again (parameters were set back) becomes current again. Trials go with
    their study. Runs that other workspaces logged on a shared server are left alone.
    """
    runs = list(_runs(ledger))
    stale = {
        run.info.run_id
        for run in runs
        if run.info.run_name in ledger.settled and run.info.run_id != ledger.settled[run.info.run_name]
    }
    studies = {run.info.run_id for run in runs if run.data.tags.get("adt.kind") == "study"}
    for run in runs:
        parent = run.data.tags.get("mlflow.parentRunId")
        trial = parent in studies
        if run.info.run_name in ledger.settled or trial:
            old = parent in stale if trial else run.info.run_id in stale
            ledger.updated += ledger.set_tags(run, {TAG: str(old).lower()}) and old


def _runs(ledger: Ledger) -> Iterator[Run]:
    """Every run of the experiment that this workspace logged."""
    mine = "" if own_database() else f"tags.`adt.workspace` = '{live.workspace()}'"
    token = None
    while True:
        page = ledger.client.search_runs([ledger.experiment], mine, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
