"""Which MLflow: its address, first use of an empty database, and failures in one line."""

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
import sqlalchemy
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import UserError

ATTEMPTS = 6  # at the tables of a new PostgreSQL database, when others make them at the same moment

SILENCE = ("Max retries exceeded", "timed out", "Connection broken", "Connection aborted", "Connection refused")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the workspace's own database, where a bare `mlflow ui` looks too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def own_database() -> bool:
    """Whether the database is the workspace's own, so that every run in it was logged from here."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


def connect() -> MlflowClient:
    """A client of `tracking_uri()`, whose database has its tables.

    MLflow makes them at first use, and two processes that do so at once destroy each other's work: a
    sqlite file is guarded by a lock beside it, another database by trying again. `UserError` where the
    database or its driver is not there.
    """
    uri = tracking_uri()
    remote = urlsplit(uri).scheme.startswith(("postgres", "mysql", "mssql"))
    with answering(), _alone(uri):
        if remote:  # MLflow itself would knock for minutes
            sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
        for left in reversed(range(ATTEMPTS if remote else 1)):
            try:
                return MlflowClient(uri)
            except (sqlalchemy.exc.SQLAlchemyError, MlflowException):
                if not left:
                    raise
                time.sleep(0.5 + random.random())
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Whatever MLflow, its database or the network has to complain of becomes a `UserError` of one line."""
    try:
        yield
    except ImportError as error:
        driver = "pip install 'adt-pipeline[postgres]'" if "psycopg" in str(error) else "install it"
        raise UserError(f"MLflow at {_shown()}: {error}; {driver}") from error
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        if any(sign in reason for sign in SILENCE):
            reason = "no answer; the files are safe, and `python -m pipeline track` completes the record later"
        raise UserError(f"MLflow at {_shown()}: {reason[:300]}") from error


def _shown() -> str:
    """The address without a password."""
    uri = tracking_uri()
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """For a sqlite file, the only process that opens it at this moment."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///").split("?")[0])
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        guard = open(database.with_name(f"{database.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"MLflow at {_shown()}: {error.strerror or error}") from error
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
