"""Walks the graph of cells over a Ray cluster: starts what can start, and starts again what was lost or failed."""

import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline import live, signals
from pipeline.cluster import commit, guard, keeper, node, placing, watch
from pipeline.files import write_bytes
from pipeline.graph import Graph
from pipeline.progress import Progress
from pipeline.sharing import Lock, lock_text
from pipeline.yaml_files import parse_text

LOSSES = 5  # nodes or workers that a cell may lose before it counts as failed
PATIENCE = 10.0  # seconds for tasks to end by themselves when they are cancelled
TAIL = 12  # lines of a failed cell's log


class Walk:
    """The cells `graph` and what became of them: `done`, `failed`, and `waiting`, those that were never run.

    `lock` grows by the entry of every cell that is done; `everything`: the graph with what is up to date.
    """

    def __init__(
        self,
        graph: Graph,
        asked: dict[str, placing.Resources],
        everything: Graph,
        common: dict[str, Any],
        lock: Lock,
    ) -> None:
        """`asked`: resources by cell; `common`: what all orders share (`node.Order`)."""
        self.graph, self.asked, self.everything, self.common, self.lock = graph, asked, everything, common, lock
        self.waiting = list(graph)
        self.done: set[str] = set()
        self.failed: list[str] = []
        self.losses: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.running: dict[Any, str] = {}  # Ray's reference -> cell
        self.signal: signal.Signals | None = None

    def run(self, jobs: int | None, kept: Path, logs: Path) -> None:
        """Run everything that can run, at most `jobs` cells at once.

        A signal (`signals.ENDING`) ends every cell, and then this process with `SystemExit`.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for module in (guard, keeper, node, watch):
            ray.cloudpickle.register_pickle_by_value(module)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(keeper.Keeper).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
        self.kept, self.logs = kept, logs
        self.keeper = actor.remote(str(kept), str(logs))
        self.task = ray.remote(node.run_cell)
        self.bundle = ray.put(commit.bundle())
        # Noted, not raised: an exception between a start and its bookkeeping would leave a task uncancelled.
        with signals.handled_by(self._note):
            try:
                with Progress("cells", len(self.graph), interval=0) as bar:
                    while not self.signal and (self._start(jobs) or self.running):
                        self._wait(bar)
            finally:
                self._cancel()
        if self.signal:
            raise SystemExit(128 + self.signal)

    def _note(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)

    def _start(self, jobs: int | None) -> bool:
        """Submit what is ready, in the order of dvc.yaml; whether anything was."""
        ready = [cell for cell in self.waiting if self.graph[cell] <= self.done]
        free = len(ready) if jobs is None else jobs - len(self.running)
        for cell in ready[: max(0, free)]:
            self.waiting.remove(cell)
            self._submit(cell)
        return bool(ready)

    def _submit(self, cell: str) -> None:
        files = self.common["files"] | {"dvc.lock": lock_text(self.lock)}
        upstream = sorted(self.everything[cell])
        order = node.Order(cell=cell, upstream=upstream, **(self.common | {"files": files}))
        options = placing.options(self.asked[cell])
        task = self.task.options(**options, max_retries=0, scheduling_strategy="SPREAD", name=cell)
        self.running[task.remote(order, self.bundle, self.keeper)] = cell

    def _wait(self, bar: Progress) -> None:
        """Wait a little, and deal with what is over."""
        import ray

        if not self.running:
            return
        over, _ = ray.wait(list(self.running), num_returns=1, timeout=0.5)
        for reference in over:
            cell = self.running.pop(reference)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                self._failed(bar, cell, "a node", " ".join(f"{type(error.cause).__name__}: {error.cause}".split()))
            except ray.exceptions.RayError as error:
                self._lost(bar, cell, error)
            else:
                if outcome.failed:
                    self._failed(bar, cell, outcome.node, outcome.failed)
                else:
                    self._finished(bar, cell, outcome)

    def _finished(self, bar: Progress, cell: str, outcome: Any) -> None:
        self.lock[cell] = parse_text(outcome.lock, f"dvc.lock of {cell}")["stages"][cell]
        for name, content in outcome.records.items():
            write_bytes(live.WORK / "record" / name, content)
        shutil.rmtree(self.kept / cell, ignore_errors=True)
        self.done.add(cell)
        how = "was on the remote" if outcome.cached else "done"
        bar.step(f"{cell} {how}, {outcome.seconds:.1f} s, node {outcome.node}")

    def _lost(self, bar: Progress, cell: str, error: Exception) -> None:
        """The node or worker died: not the cell's fault, so another one takes it."""
        import ray

        where = ray.get(self.keeper.node.remote(cell)) or "before it was told which"
        self.losses[cell] += 1
        if self.losses[cell] > LOSSES:
            self._give_up(bar, cell, f"lost {LOSSES + 1} nodes or workers, the last one {where}")
            return
        what = f"{cell}: lost with node {where} ({type(error).__name__})"
        print(f"{what}; submitted again, {self.losses[cell]} of {LOSSES}", file=sys.stderr, flush=True)
        if not placing.fits(self.asked[cell], placing.nodes()):
            print(f"{cell}: waits, for no node that is left has what it needs", file=sys.stderr, flush=True)
        self._submit(cell)

    def _failed(self, bar: Progress, cell: str, where: str, why: str) -> None:
        self.failures[cell] += 1
        if self.failures[cell] > 1:
            self._give_up(bar, cell, f"failed twice, the second time on node {where}: {why}")
            return
        print(f"{cell}: failed on node {where}: {why}; tried once more", file=sys.stderr, flush=True)
        self._submit(cell)

    def _give_up(self, bar: Progress, cell: str, why: str) -> None:
        self.failed.append(cell)
        log = self.logs / f"{cell}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        print(f"\n{cell} {why}:", file=sys.stderr)
        print("\n".join(f"    {line}" for line in lines[-TAIL:]), file=sys.stderr, flush=True)
        bar.step(f"{cell} failed")

    def _cancel(self) -> None:
        """End every running task with everything it started; by force where it does not end by itself."""
        import ray

        if not self.running:
            return
        names = ", ".join(self.running.values())
        print(f"\nending {names}; the same command goes on from here", file=sys.stderr, flush=True)
        for reference in self.running:
            ray.cancel(reference)
        _, left = ray.wait(list(self.running), num_returns=len(self.running), timeout=PATIENCE)
        for reference in left:
            ray.cancel(reference, force=True)
