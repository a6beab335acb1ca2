"""Where a study is kept: a file of this workspace, or a database that several workers share."""

import contextlib
import os
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError

VARIABLE = "ADT_STUDY"  # environment: the URL of a database that workers share
HEARTBEAT = 10  # seconds between two signs of life of a worker
GRACE = 60  # seconds of silence after which its trial is given to another
_FAILURES = (SQLAlchemyError, optuna.exceptions.StorageInternalError, AssertionError)
_ATTEMPTS = 5
_PATIENCE = 60  # seconds that a worker waits while another writes to a sqlite file


def shared_url() -> str | None:
    """The database that ADT_STUDY names, if it does."""
    return os.environ.get(VARIABLE) or None


@contextlib.contextmanager
def local(path: Path) -> Iterator[optuna.storages.RDBStorage]:
    """The sqlite file `path`, made where it is not there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _closing(optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")) as kept:
        yield kept


@contextlib.contextmanager
def shared(url: str, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> Iterator[optuna.storages.RDBStorage]:
    """The database at `url`; a worker silent for `grace` seconds loses its trial, which is put back to be tried again.

    `UserError` where the database or its driver is not there.
    """
    with _closing(_connected(url, heartbeat, grace)) as kept:
        yield kept


def _connected(url: str, heartbeat: int, grace: int) -> optuna.storages.RDBStorage:
    """Workers that use an empty database first, at once, make its tables in each other's way: they try again."""
    for left in reversed(range(_ATTEMPTS)):
        with _answering(url), quiet():
            try:
                kept = optuna.storages.RDBStorage(
                    url,
                    heartbeat_interval=heartbeat,
                    grace_period=grace,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
                )
                _one_at_a_time(kept.engine)
                return kept
            except _FAILURES:
                if not left:
                    raise
        time.sleep(0.3 + random.random())
    raise AssertionError("the last attempt returns or raises")


def _one_at_a_time(engine: Engine) -> None:
    """Let a sqlite file be read for a decision and changed in one transaction, as `for update` does elsewhere.

    Python's driver begins a transaction at the first write only: two workers could take the same waiting trial.
    """
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def _by_hand(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {1000 * _PATIENCE}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections that began otherwise


@contextlib.contextmanager
def _closing(kept: optuna.storages.RDBStorage) -> Iterator[optuna.storages.RDBStorage]:
    try:
        yield kept
    finally:
        kept.remove_session()
        kept.engine.dispose()


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """What the database or its driver complain of becomes a `UserError` of one line, without the password."""
    try:
        yield
    except (ImportError, ValueError, *_FAILURES) as error:
        password = urlsplit(url).password
        place = url.replace(f":{password}@", ":***@") if password else url
        driver = "; pip install 'adt-pipeline[postgres]'" if isinstance(error, ImportError) else ""
        reason = " ".join(str(error).split())
        reason = reason.replace(password, "***") if password else reason
        raise UserError(f"{VARIABLE}={place}: cannot be used: {reason[:300]}{driver}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Heartbeats and their retries are marked as experimental; the project's tests are what we go by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
