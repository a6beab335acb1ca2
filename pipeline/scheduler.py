"""Cells in parallel on one machine: a process each, on slots of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import leash, live, signals
from pipeline.graph import Graph, cell_command
from pipeline.needs import PIPELINE_FILE, needs
from pipeline.progress import Progress
from pipeline.slots import Place, Slots
from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

LOGS = live.WORK / "logs"
# Who runs cells is present all the time (`live.presence`), so a cell needs to start no follower: it would be ended
# with the cell.
QUIET = {live.SWITCH: "0"}
DVC_SAYS = ("Running stage ", "> ", "ERROR: failed to reproduce ")  # beginnings of its lines around a stage's own


def run_cells(p: "Params", graph: Graph, slots: Slots, force: bool = False) -> int:
    """Run every stage of `graph`; 0, or 1 after naming on stderr what failed, and why, and what was not run."""
    stages = read_yaml(PIPELINE_FILE)["stages"]
    devices = {stage: needs(p, stage, stages).devices for stage in graph}
    threads = {"OMP_NUM_THREADS": str(p.runtime.threads)}
    scheduler = Scheduler(graph, slots, devices, force, threads | QUIET)
    failed = scheduler.run()
    for stage in failed:
        print(f"failed: {stage}: {reason(stage)}; log: {LOGS / stage}.log", file=sys.stderr)
    if scheduler.waiting:
        shown, more = scheduler.waiting[:8], len(scheduler.waiting) - 8
        names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
        print(f"not run, for they wait for what failed: {names}", file=sys.stderr)
    return int(bool(failed))


@dataclass
class Running:
    """A stage at work: its process, place and start."""

    stage: str
    process: subprocess.Popen[bytes]
    place: Place
    started: float = field(default_factory=time.monotonic)


class Scheduler:
    """Walks a stage graph: a stage starts when the stages before it are done and its slots are free.

    The rule where more is ready than fits: first fit in the order of the graph, but a stage lets at most as many
    later ones pass it as there are slots; then freed slots are kept for it.
    """

    def __init__(
        self,
        graph: Graph,
        slots: Slots,
        devices: Mapping[str, int],
        force: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`devices`: how many each stage asks for; `force`: run what is up to date, too; `environment`: to add."""
        self.graph, self.slots, self.devices, self.force = graph, slots, devices, force
        self.environment = environment or {}
        self.waiting = list(graph)
        self.passed: Counter[str] = Counter()
        self.done: set[str] = set()
        self.failed: list[str] = []
        self.running: list[Running] = []
        self.signal: signal.Signals | None = None

    def run(self) -> list[str]:
        """Run everything that can run; returns the stages that failed (what waits for them is not run).

        A signal (`signals.ENDING`) ends every stage, and then this process with `SystemExit`.
        """
        LOGS.mkdir(parents=True, exist_ok=True)
        # Noted, not raised: an exception between a start and its bookkeeping would leave a stage unwaited for.
        with signals.handled_by(self._note):
            try:
                with Progress("stages", len(self.graph), interval=0) as bar:
                    while not self.signal and (self._start() or self.running):
                        for finished in self._finished():
                            seconds = time.monotonic() - finished.started
                            outcome = "failed" if finished.stage in self.failed else "done"
                            bar.step(f"{finished.stage} {outcome}, {seconds:.1f} s")
                        time.sleep(0.05)
            finally:
                self._stop()
        if self.signal:
            raise SystemExit(128 + self.signal)
        return self.failed

    def _note(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)

    def _start(self) -> bool:
        """Start what is ready and fits; whether anything was ready."""
        ready = [stage for stage in self.waiting if self.graph[stage] <= self.done]
        passed_by: list[str] = []  # what is ready, and too large for the slots that are free
        kept = False
        for stage in sorted(ready, key=lambda stage: not self._is_due(stage)):
            contends = self.slots.wanted(self.devices[stage]) > 0
            place = None if kept and contends else self.slots.take(self.devices[stage])
            if place is not None:
                self.waiting.remove(stage)
                self.running.append(self._launch(stage, place))
                self.passed.update(passed_by if contends else ())
            elif contends:
                passed_by.append(stage)
            kept = any(map(self._is_due, passed_by))
        return bool(ready)

    def _is_due(self, stage: str) -> bool:
        return self.passed[stage] >= self.slots.size

    def _launch(self, stage: str, place: Place) -> Running:
        environment = os.environ | self.environment | place.environment()
        with open(LOGS / f"{stage}.log", "wb") as log:
            command = cell_command(stage, self.force)
            process = leash.start(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return Running(stage, process, place)

    def _finished(self) -> list[Running]:
        over = [r for r in self.running if r.process.poll() is not None]
        for r in over:
            self.running.remove(r)
            leash.let_go(r.process)
            self.slots.give_back(r.place)
            if r.process.returncode == 0:
                self.done.add(r.stage)
            else:
                self.failed.append(r.stage)
                _show_tail(r)
        return over

    def _stop(self) -> None:
        """End every running stage with everything it started."""
        if self.running:
            names = ", ".join(r.stage for r in self.running)
            print(f"\nending {names}; the same command goes on from here", file=sys.stderr)
        leash.let_go(*(r.process for r in self.running))


def reason(stage: str) -> str:
    """Why a stage failed, by its log: the signal that ended it, its `error: ...`, or the last line that it wrote."""
    lines = [line.strip() for line in _log(stage) if line.strip()]
    if lines and (ended := re.search(r"^ERROR: failed to reproduce .*exited with -(\d+)$", lines[-1])):
        return f"ended by {signal.Signals(int(ended[1])).name}"
    said = [line for line in lines if line.startswith("error: ")]
    own = [line for line in lines if not line.startswith(DVC_SAYS)]
    closing = [line for line in lines if line.startswith("ERROR: ")]
    return (said or own or closing or ["it said nothing"])[-1]


def _log(stage: str) -> list[str]:
    return (LOGS / f"{stage}.log").read_text(errors="replace").splitlines()


def _show_tail(running: Running, lines: int = 12) -> None:
    print(f"\n{running.stage} failed with status {running.process.returncode}:", file=sys.stderr)
    print("\n".join(f"    {line}" for line in _log(running.stage)[-lines:]), file=sys.stderr)
