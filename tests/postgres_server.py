"""A PostgreSQL server of the distribution's package for tests that need a real one, on the loopback interface."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The address of an empty database; the test is skipped with a message where there is no PostgreSQL to start."""
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (pip install 'adt-pipeline[postgres]')")
    if _program("initdb") is None or _program("pg_ctl") is None:
        pytest.skip("initdb and pg_ctl, the programs of a PostgreSQL server, are not installed")
    user = None if os.geteuid() else "postgres"  # which the server refuses to be root for
    if user and not _account_exists(user):
        pytest.skip("PostgreSQL does not run as root, and there is no account postgres to run it as")
    folder, port = Path(tempfile.mkdtemp()), free_port()
    if user:
        shutil.chown(folder, user)

    def call(name: str, *command: str) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([_program(name), *command], user=user, cwd=folder, check=True, **quiet)

    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("initdb", "-D", f"{folder}/data", "-U", "adt", "-A", "trust", "--no-sync")
    call("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
    try:
        yield f"postgresql://adt:secret@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _program(name: str) -> str | None:
    """A program of the server: on the path, or where Debian's package puts it."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(packaged[-1]) if packaged else None)


def _account_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
