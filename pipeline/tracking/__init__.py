"""MLflow as a mirror of the workspace's files; the only package that imports MLflow.

`sync` reads what stages wrote and creates or completes the runs that are missing.
Every run carries the tag `adt.key`, a hash of what made it, so a second sync logs
nothing, and a stage that DVC served from its cache is mirrored like any other.

A registered model in three lines:

    from pipeline.tracking import load_model
    model = load_model("models:/digits-adt_exp@champion")  # a torch module in evaluation mode
    logits = model(images)  # images in [0, 1], (N, channels, height, width): the normalisation is inside
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is away is found out in seconds, not in MLflow's default of over a minute.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Set by `mlflow run`; with it every run here would try to be that one run.
PROJECT_RUN = os.environ.pop("MLFLOW_RUN_ID", None)

from pipeline.tracking.downloading import download
from pipeline.tracking.loading import describe, load, load_model
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.registry import register
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.service import follow, serve, sync

__all__ = [
    "Mirror",
    "describe",
    "download",
    "follow",
    "load",
    "load_model",
    "register",
    "serve",
    "sync",
    "tracking_uri",
]
