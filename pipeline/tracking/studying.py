"""Studies in MLflow: one parent a state of the study's table, one child a trial."""

from pipeline.studied import Study, Trial
from pipeline.tracking.ledger import Ledger

DONE = "adt.done"


def complete(ledger: Ledger, study: Study) -> None:
    """Create or complete the runs of a study."""
    parent = ledger.ensure(study.plan.name, study.key, "study", study.params(), study.tags())
    for trial in study.trials():
        _trial(ledger, parent.info.run_id, trial)
    if DONE not in parent.data.tags:
        ledger.log(parent, study.metrics(), 0, ledger.since(parent, "study", study.key[:16]))
        ledger.client.log_artifact(parent.info.run_id, str(study.plan.table))
        ledger.set_tags(parent, {DONE: "true"})
    ledger.finish(parent)


def _trial(ledger: Ledger, parent: str, trial: Trial) -> None:
    run = ledger.ensure(trial.name, trial.key, "trial", trial.params, {"mlflow.parentRunId": parent})
    if run.info.status != "FINISHED":
        ledger.log(run, trial.metrics, 0, ledger.since(run, "trial", trial.key[:16]))
    ledger.finish(run)
