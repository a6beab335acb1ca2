"""A thread in every process of a job that tells the others where it is, and names the one that stops.

A process that hangs lets all the others wait in their next exchange for ever, without a word. So each one
keeps a short record in the store that torchrun's agent holds (its beat, its place in the work), and when
there is no progress for too long, whoever notices first names the process that is behind, and ends.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store

BEAT_SECONDS = 1.0
SILENT_SECONDS = 60.0  # a process whose thread does not even beat for so long is gone, whatever it was doing


@dataclass(frozen=True)
class Suspect:
    """A process that others wait for, and what it said last."""

    rank: int
    size: int
    silent: bool
    beat: int
    count: int
    place: str
    pid: int
    host: str

    def __str__(self) -> str:
        does = "does not answer" if self.silent else "makes no progress"
        return f"rank {self.rank} of {self.size} (process {self.pid} on {self.host}) {does}; it was at {self.place}"


class Watch(threading.Thread):
    """Beats for process `rank` of `size` in a job called `job`, until `stop`.

    `stall`: seconds without progress of this process (calls of `at`) after which the one that is furthest behind is
    named; None where progress is not reported.
    """

    def __init__(self, store: "Store", rank: int, size: int, job: str, stall: float | None) -> None:
        super().__init__(daemon=True, name="watch")
        self.store, self.rank, self.size, self.job, self.stall = store, rank, size, job, stall
        self.interval = min(BEAT_SECONDS, (stall or SILENT_SECONDS) / 4)
        self.count, self.place, self.moved = 0, "the start", time.monotonic()
        self._beats = 0
        self._stopped = threading.Event()

    def at(self, place: str) -> None:
        """The process has got to `place`; every call counts as progress."""
        self.count, self.place, self.moved = self.count + 1, place, time.monotonic()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()

    def first(self) -> bool:
        """Whether this process is the first of all that asks, and so the one to say what is wrong."""
        return self.store.add("told", 1) == 1

    def behind(self, since: float) -> list[Suspect]:
        """The processes that do not beat any longer, else those with the least progress if others have more.

        Waits for `since` seconds to see which records still change.
        """
        before = self._records()
        time.sleep(since)
        after = self._records()
        silent = [rank for rank in after if rank != self.rank and after[rank]["beat"] == before[rank]["beat"]]
        least = min(record["count"] for record in after.values())
        last = [rank for rank, record in after.items() if record["count"] == least]
        chosen = silent or (last if len(last) < self.size else [])
        return [Suspect(rank, self.size, rank in silent, **after[rank]) for rank in chosen]

    def run(self) -> None:
        """Beat, and look whether there is progress."""
        heard: dict[int, tuple[int, float]] = {}
        while not self._stopped.wait(self.interval):
            self._beat()
            if self.stall is not None:
                # Data and networks are loaded before the first report.
                allowed = self.stall if self.count else max(self.stall, SILENT_SECONDS)
                if time.monotonic() - self.moved > allowed:
                    self._end(allowed)
            for rank, record in self._records().items():
                if record["beat"] != heard.get(rank, (None, 0.0))[0]:
                    heard[rank] = (record["beat"], time.monotonic())
                elif time.monotonic() - heard[rank][1] > SILENT_SECONDS:
                    self._end(SILENT_SECONDS)

    def _beat(self) -> None:
        self._beats += 1
        record = {"beat": self._beats, "count": self.count, "place": self.place}
        self.store.set(str(self.rank), json.dumps(record | {"pid": os.getpid(), "host": socket.gethostname()}))

    def _records(self) -> dict[int, dict[str, Any]]:
        """What every process that has beaten once said last."""
        return {
            rank: json.loads(self.store.get(str(rank))) for rank in range(self.size) if self.store.check([str(rank)])
        }

    def _end(self, seconds: float) -> None:
        """Say who is behind, unless another process did, and end it and this process, whose main thread is stuck."""
        suspects = self.behind(3 * self.interval)
        if self.first():
            named = "; ".join(map(str, suspects)) or f"all {self.size} ranks are at the same place, {self.place}"
            said = f"error: {self.job}: no progress for {seconds:g} s: {named}"
            print(f"{said}; run it again to go on from the last checkpoint", file=sys.stderr, flush=True)
        for suspect in suspects:
            # A stopped process does not hear a polite request, and torchrun would wait for it.
            if suspect.host == socket.gethostname() and suspect.pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(suspect.pid, signal.SIGKILL)
        os._exit(2)
