"""Completing MLflow once, while stages run, or before its pages are served."""

import os
import socket
import sys
import time
from pathlib import Path
from urllib.parse import quote

from pipeline import live, params
from pipeline.errors import UserError
from pipeline.tracked import result_files
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.server import answering, tracking_uri
from pipeline.tracking.superseding import CURRENT

IDLE_SECONDS = 8.0  # how long a follower outlives the last stage: DVC's pauses between stages are shorter
POLL_SECONDS = 2.0


def sync(results: bool = True) -> str:
    """Complete MLflow from the files; returns one line saying what was done.

    `results` also logs what belongs to a finished reproduction: the state of results/, the
    health of runs, and which runs are superseded. `UserError` where MLflow does not answer:
    the next sync repairs whatever was left half-way.
    """
    with live.lock("sync"), answering():
        mirror = Mirror(params.load())
        mirror.sync(results)
    return f"MLflow: {mirror.created} runs added, {mirror.updated} updated, experiment {mirror.p.preset!r}"


def follow() -> None:
    """Sync whenever files change, until no stage has been at work for `IDLE_SECONDS`. One follower a workspace."""
    with live.lock("follower", wait=False) as mine:
        if not mine:
            return
        seen, last_present = None, time.monotonic()
        while time.monotonic() - last_present < IDLE_SECONDS:
            if live.anyone_present():
                last_present = time.monotonic()
            state = _file_state()
            if state != seen:
                try:
                    sync(results=False)
                    seen = state
                except Exception as error:  # the follower must outlive a file seen half-way or a server that is away
                    print(f"{time.ctime()}: will try again: {error}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)
        sync()


def serve(port: int) -> None:
    """Complete MLflow, then become `mlflow ui` on the loopback interface; returns only by exception."""
    _check_port(port)
    print(sync())
    shown = f"workflowType=machine_learning&searchFilter={quote(CURRENT)}"
    runs = f"experiments/{Mirror(params.load()).experiment}/runs?{shown}"
    print(f"MLflow: http://127.0.0.1:{port}/#/{runs} (Ctrl-C ends it)", flush=True)
    command = ["mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port), "--workers", "1"]
    os.execvp(sys.executable, [sys.executable, "-m", *command])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used ({error}); choose another") from None


def _file_state() -> list[tuple[str, int]]:
    """Names and times of everything that `sync` reads."""
    watched = [
        *Path("runs").rglob("metrics.json"),
        *Path("verdicts").rglob("*.npz"),
        *live.WORK.glob("train/*/history.csv"),
        *result_files(),
    ]
    state = []
    for path in watched:
        try:
            state.append((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:  # DVC removes outputs before it runs a stage
            continue
    return sorted(state)
