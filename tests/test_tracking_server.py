"""A real MLflow server that dies at random moments, and a real PostgreSQL: the record comes out complete and single."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from postgres_server import free_port, postgres_server
from small_workspace import EPOCHS, attacked, empty_database, finished, make

from pipeline import tracking
from pipeline.errors import UserError
from pipeline.files import write_text

HERE = Path(__file__).parent
METRICS = ("val_robust", "test_pgd-3", "gradient_evaluations")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a finished run and a study of two trials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make(database=False)
    finished(0)
    attacked(0, 5)
    header = "method,lam,tau,seed,val_robust,natural,pgd-3,worst-case\n"
    rows = "adt_exp,0,,0,0.5,0.98,0.6,0.5\nadt_exp,0.1,,0,0.7,0.9,0.6,0.5\n"
    write_text(Path("results/ablation/lambda.csv"), header + rows)
    return tmp_path


class Server:
    """`mlflow server` on the loopback interface over a sqlite file: start, and SIGKILL for all of its processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "server.db").write_bytes(empty_database())
        self.folder, self.port = folder, free_port()
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        where = ["--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self.port), "--workers", "1"]
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *where],
                stdout=log,
                stderr=log,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # ten processes that nobody needs
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        """What a power cut does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Cable:
    """A forwarder in front of a server that lets `left` more writing requests be answered; then it carries no answer.

    The server has then done what it was asked, and does it again when the client asks again.
    """

    def __init__(self, port: int) -> None:
        self.target, self.left = port, float("inf")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            self._pump(server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if answers and self.left < 0:
                    break
                self.left -= not answers and content.startswith(b"POST") and b"/search" not in content[:80]
                sink.sendall(content)
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)


def whole_record(uri: str) -> None:
    """Asserts that the record of the workspace is there, every run once and every measurement once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("smoke").experiment_id
    found = client.search_runs([experiment])
    named = {run.info.run_name: run for run in found}
    assert sorted(run.info.run_name for run in found) == [
        "at_pgd",
        "at_pgd seed 0",
        "lambda study",
        "lambda study: adt_exp lam 0 seed 0",
        "lambda study: adt_exp lam 0.1 seed 0",
    ]
    assert {run.info.status for run in found} == {"FINISHED"}
    run = named["at_pgd seed 0"]
    steps = {name: [m.step for m in client.get_metric_history(run.info.run_id, name)] for name in METRICS}
    assert steps == {"val_robust": list(range(1, EPOCHS + 1)), "test_pgd-3": [2], "gradient_evaluations": [0]}
    assert run.data.tags["mlflow.parentRunId"] == named["at_pgd"].info.run_id
    models = client.search_logged_models([experiment])
    assert [(model.status, model.source_run_id) for model in models] == [("READY", run.info.run_id)]
    measured = client.get_logged_model(models[0].model_id).metrics
    assert sorted(metric.key for metric in measured) == ["test_natural", "test_pgd-3", "test_worst-case"]


def test_a_server_that_dies_at_random_moments_ends_with_the_whole_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten cuts of the line at random writes, then a kill of the server itself at a random moment."""
    chance = random.Random(7)
    server = Server(tmp_path / "server")
    cable = Cable(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{cable.port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    try:
        for left in (1, *chance.choices(range(4), k=9)):  # the second write creates a run
            cable.left = left
            with contextlib.suppress(UserError):
                tracking.sync()
        cable.left = float("inf")
        killer = threading.Timer(chance.uniform(0.05, 0.4), server.kill)
        killer.start()
        with contextlib.suppress(UserError):
            tracking.sync()
        killer.join()
        with pytest.raises(UserError, match="no answer"):
            tracking.sync()
        server.start()
        tracking.sync()
        assert "0 runs added, 0 updated" in tracking.sync()
        whole_record(f"http://127.0.0.1:{server.port}")
    finally:
        server.kill()
        cable.listener.close()


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of an empty database of a PostgreSQL server of our own."""
    with postgres_server() as address:
        yield address


def test_a_postgresql_database_holds_the_same_record(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes use it first, at once. Everything is in processes: MLflow leaves its connections open."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))

    def start(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])

    started = [start("from pipeline.tracking.server import connect; connect()") for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    twice = "tracking.sync(); assert '0 runs added, 0 updated' in tracking.sync()"
    look = f"test_tracking_server.whole_record({postgres!r})"
    assert start(f"import test_tracking_server; from pipeline import tracking; {twice}; {look}").wait() == 0
