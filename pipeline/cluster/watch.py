"""On a node: sends the keeper what a running cell writes, and puts what the keeper has where the cell goes on from it.

Travels by value, as `pipeline.cluster.node` does.
"""

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.cluster.guard import CLONE, LOG
from pipeline.cluster.keeper import PART

PASSING = (".tmp", "-journal", "-wal", "-shm")  # how names end of files that are of no use elsewhere


def answer(reference: Any) -> Any:
    """What an actor answers. Waited for beside the main thread: while that waits, Ray lends the task's core away."""
    import ray

    with ThreadPoolExecutor(1) as beside:
        return beside.submit(ray.get, reference).result()


class Watch:
    """Sends the keeper what a running cell writes: its log, and new versions of its states to go on from."""

    def __init__(self, cell: str, resumable: list[str], interval: float, folder: Path, keeper: Any) -> None:
        """`resumable`: folders of `.work` with states; `interval`: seconds at least between two looks at them."""
        self.cell, self.resumable, self.interval, self.folder, self.keeper = cell, resumable, interval, folder, keeper
        self.work = folder / CLONE / ".work"
        self.seen: dict[Path, tuple[int, int]] = {}
        self.told = 0  # bytes of the log
        self.looked = time.monotonic()

    def restore(self) -> None:
        """Put the states that the keeper has into the clone."""
        for name in answer(self.keeper.names.remote(self.cell)):
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                while part := answer(self.keeper.part.remote(self.cell, name, file.tell())):
                    file.write(part)
            self.seen[path] = _version(path)

    def look(self, pressing: bool = False) -> None:
        """Send what is new, unless the last look was less than an interval ago and this one is not pressing."""
        if not pressing and time.monotonic() - self.looked < self.interval:
            return
        self.send_log()
        for kind in self.resumable:
            for path in sorted((self.work / kind).rglob("*")):
                try:
                    if path.is_file() and not path.name.endswith(PASSING) and self.seen.get(path) != _version(path):
                        self.seen[path] = _version(path)
                        self._send(path)
                except FileNotFoundError:
                    pass  # the cell has done with it
        self.looked = time.monotonic()

    def send_log(self) -> None:
        """Send what the log has grown by."""
        with open(self.folder / LOG, "rb") as log:
            log.seek(self.told)
            new = log.read()
        if new:
            answer(self.keeper.log.remote(self.cell, new))
            self.told += len(new)

    def _send(self, path: Path) -> None:
        """Send a file part by part: whoever replaces it meanwhile does not touch what is open here."""
        with _consistent(path) as file:
            name, attempt, first, part = str(path.relative_to(self.work)), self.folder.name, True, file.read(PART)
            while part or first:
                following = file.read(PART)
                answer(self.keeper.store.remote(self.cell, name, attempt, part, first, not following))
                part, first = following, False


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@contextmanager
def _consistent(path: Path) -> Iterator[Any]:
    """The file, open; of a SQLite database, which is written in place, a copy that SQLite made."""
    with open(path, "rb") as file:
        if file.read(16) != b"SQLite format 3\x00":
            file.seek(0)
            yield file
            return
    with tempfile.TemporaryDirectory(prefix="copy-") as folder:
        copy = Path(folder) / path.name
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        with open(copy, "rb") as file:
            yield file
