"""A rehearsal of a reproduction: the scheduler itself with a clock that jumps, on machines that are not here."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.graph import Graph
from pipeline.scheduler import Scheduler
from pipeline.slots import Place, Slots

CORES = 8  # cells that need no device, at once: a handful of seconds each


@dataclass(frozen=True)
class Span:
    """One cell of a plan: seconds after the start at which it begins and ends, on so many devices (0: on none)."""

    begin: float
    end: float
    devices: int


@dataclass(frozen=True)
class Plan:
    """What became of a graph on `size` devices."""

    spans: Mapping[str, Span]
    size: int

    @property
    def makespan(self) -> float:
        """Seconds from the start to the end of the last cell."""
        return max((span.end for span in self.spans.values()), default=0.0)

    @property
    def work(self) -> float:
        """Seconds of devices that cells have held: each cell's seconds times its devices."""
        return sum((span.end - span.begin) * span.devices for span in self.spans.values())

    @property
    def idle(self) -> float:
        """Share of all devices' time up to the makespan that no cell has held, in [0, 1]."""
        return 1 - self.work / (self.size * self.makespan) if self.makespan else 0.0


class Cluster(Slots):
    """The GPUs of equal nodes. A cell has all of its GPUs in one node, the first with room, if a node is enough."""

    def __init__(self, gpus: int, node: int) -> None:
        super().__init__([str(number) for number in range(gpus)], CORES)
        self.node = node

    def take(self, devices: int) -> Place | None:
        """As on one machine, where the nodes have it."""
        wanted, names = self.wanted(devices), list(self.gpus)
        if not wanted:
            return super().take(devices)
        size = self.node if wanted <= self.node else len(names)
        for first in range(0, len(names), size):
            free = [name for name in names[first : first + size] if not self.used[name]]
            if len(free) >= wanted:
                self.used.update(free[:wanted])
                return Place(tuple(free[:wanted]), 0)
        return None


@dataclass(frozen=True)
class Rehearsed:
    """A cell that is under way in a rehearsal."""

    stage: str
    place: Place
    end: float


class Rehearsal(Scheduler):
    """The scheduler of `python -m pipeline repro`, its rule and its slots; cells take `seconds` instead of running."""

    def __init__(self, graph: Graph, slots: Slots, devices: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        super().__init__(graph, slots, devices)
        self.seconds, self.now = seconds, 0.0
        self.spans: dict[str, Span] = {}

    def plan(self) -> Plan:
        """Every cell in its time and place."""
        while self._start() or self.running:
            self.now = min(cell.end for cell in self.running)
            for cell in [cell for cell in self.running if cell.end == self.now]:
                self.running.remove(cell)
                self.slots.give_back(cell.place)
                self.done.add(cell.stage)
        return Plan(self.spans, self.slots.size)

    def _launch(self, stage: str, place: Place) -> Rehearsed:
        held = len(place.gpus) if self.slots.gpus else place.cores
        self.spans[stage] = Span(self.now, self.now + self.seconds[stage], held)
        return Rehearsed(stage, place, self.spans[stage].end)


def least(graph: Graph, plan: Plan) -> float:
    """Seconds that no schedule of the same cells undercuts: the longest way through the graph, and all work shared."""
    ends: dict[str, float] = {}
    while len(ends) < len(graph):
        for cell, before in graph.items():
            if cell not in ends and before <= ends.keys():
                span = plan.spans[cell]
                ends[cell] = max((ends[one] for one in before), default=0.0) + span.end - span.begin
    return max([*ends.values(), plan.work / plan.size])
