"""On a node: one cell in a clean clone of the commit, fetched from and pushed to the remote.

These functions travel to the nodes by value, so they use the standard library and Ray alone: a node needs the
project's dependencies, not the project. The clone has the driver's dvc.lock as it is at that moment, and
fetches by it what the cell depends on; nothing but the cell itself is ever run here.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.guard import CLONE, LOG
from pipeline.cluster.watch import Watch, answer

TOOLS = "tools"  # beside the clone: the guard's sources


@dataclass(frozen=True)
class Order:
    """What a node is asked to do: run `cell` of `commit` after fetching the outputs of `upstream`.

    `files`: texts to write into the clone, by path; `tools`: sources of the guard; `resumable`: folders of
    `.work` with states to go on from; `interval`: seconds at least between two looks at them.
    """

    cell: str
    commit: str
    upstream: list[str]
    remote: str
    files: dict[str, str]
    tools: dict[str, str]
    resumable: list[str]
    environment: dict[str, str]
    interval: float


@dataclass(frozen=True)
class Outcome:
    """What became of it: `failed` says which command failed and how, or is empty; `lock`: the clone's dvc.lock.

    `seconds`: on the node, from an empty folder to the last push. `records`: files of `.work/record` by name;
    `cached`: the cell was not run but restored from the remote.
    """

    node: str
    seconds: float
    failed: str
    lock: str
    records: dict[str, bytes]
    cached: bool


def run_cell(order: Order, bundle: bytes, keeper: Any) -> Outcome:
    """Run the cell; a command that fails is an outcome, not an exception. The folder is gone afterwards."""
    import ray

    started = time.monotonic()
    node = f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:6]})"
    answer(keeper.begin.remote(order.cell, node))
    with _workplace(order) as (folder, run):
        clone = folder / CLONE
        (folder / "commit.bundle").write_bytes(bundle)
        watch = Watch(order.cell, order.resumable, order.interval, folder, keeper)
        failed = ""
        for command in _preparation(order):
            failed = failed or run(command, watch.send_log)
        if not failed:
            for path, text in order.files.items():
                (clone / path).write_text(text)
            watch.restore()
            for command in _work(order):
                failed = failed or run(command, watch.look)
        watch.look(pressing=True)
        said = (folder / LOG).read_text(errors="replace")
        records = {path.name: path.read_bytes() for path in clone.glob(".work/record/*.json")}
        lock = "" if failed else (clone / "dvc.lock").read_text()
        cached = "is cached - skipping run" in said
        return Outcome(node, time.monotonic() - started, failed, lock, records, cached)


def _preparation(order: Order) -> list[list[str]]:
    """Commands that make the clean clone. Files that the remote's results replace later leave it as clean as it is."""
    return [
        ["git", "init", "--quiet"],
        ["git", "fetch", "--quiet", "../commit.bundle", "HEAD"],
        ["git", "checkout", "--quiet", "--detach", order.commit],
        ["sh", "-c", "git ls-files -z | git update-index -z --assume-unchanged --stdin"],
    ]


def _work(order: Order) -> list[list[str]]:
    """Commands that fetch what the cell depends on, run it unless the run cache knows it, and push it."""
    fetch = ["dvc", "pull", "--quiet", "--force", "--remote", order.remote, *order.upstream]
    return [
        *([fetch] if order.upstream else []),
        ["dvc", "repro", "--pull", "--single-item", order.cell],
        ["dvc", "push", "--quiet", "--run-cache", "--remote", order.remote, order.cell],
    ]


@contextmanager
def _workplace(order: Order) -> Iterator[Any]:
    """A folder with an empty clone, and a function that runs a command there and says how it failed, or ""."""
    folder = Path(tempfile.mkdtemp(prefix="cell-"))
    (folder / CLONE).mkdir()
    for path, text in order.tools.items():
        (folder / TOOLS / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / TOOLS / path).write_text(text)
    (folder / LOG).write_bytes(b"")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    places = {"PATH": path, "DVC_SITE_CACHE_DIR": str(folder / "site")}
    guard = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cluster.guard", str(folder)],
        cwd=folder / TOOLS,
        env=kept | places | order.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    guard.wait()  # it goes on in a process that is not ours

    def run(command: list[str], meanwhile: Any) -> str:
        before = (folder / LOG).stat().st_size
        guard.stdin.write(json.dumps(command).encode() + b"\n")
        guard.stdin.flush()
        while not select.select([guard.stdout], [], [], 0.2)[0]:
            meanwhile()
        answer = guard.stdout.readline().strip()
        if answer != b"0":
            return f"{' '.join(command[:2])} ended with status {answer.decode() or 'unknown'}"
        # Of a run cache DVC only logs what it could not copy; without it the driver would run the cell again.
        with open(folder / LOG, "rb") as log:
            log.seek(before)
            lost = command[:2] == ["dvc", "push"] and b"failed to transfer" in log.read()
        return "dvc push could not copy the run cache" if lost else ""

    try:
        yield folder, run
    finally:
        guard.stdin.close()
        guard.stdout.read()  # until the guard has ended everything, itself last
        guard.stdout.close()
