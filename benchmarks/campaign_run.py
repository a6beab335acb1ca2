"""Running a campaign's cells on a node: which are open, several at once, until the budget ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import campaign_data
from pipeline import bare, machine
from pipeline.errors import UserError
from pipeline.files import read_csv, read_json, write_json

PLAN, FORMAT = "plan.json", "adt-campaign-1"
CODE = ("pipeline", "stages", "benchmarks", "plugins")
CHOICES = (1, 2, 4)  # processes at once that are tried
SPEED_SECONDS = 6.0
WORTH = 1.1  # more processes must make the card so many times faster
LEAST = 15.0  # seconds that must be left for a cell to be begun
POLL = 0.2


@dataclass(frozen=True)
class Place:
    """One cell and where it is worked on: `folder` is the workspace of its part."""

    part: str
    method: str
    seed: int
    key: str
    folder: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.part} {self.method} seed {self.seed}"

    @property
    def run(self) -> Path:
        """The folder of its training's outputs."""
        return self.folder / "runs" / self.method / f"seed-{self.seed}"

    @property
    def verdicts(self) -> Path:
        """Its verdict table."""
        return self.folder / "verdicts" / self.method / f"seed-{self.seed}.npz"

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.folder / "logs" / f"{self.method}-seed-{self.seed}.log"

    def is_trained(self) -> bool:
        """Its training's outputs are complete, and of this very cell."""
        described = self.run / "run.json"
        return (self.run / "metrics.json").exists() and described.exists() and read_json(described)["key"] == self.key

    def is_done(self) -> bool:
        """Trained and attacked."""
        return self.is_trained() and self.verdicts.with_suffix(".json").exists()

    def under_way(self) -> Path | None:
        """The work folder of its unfinished training: run.json and, after an epoch, history.csv."""
        for described in sorted(self.folder.glob(".work/train/*/run.json")):
            if read_json(described)["key"] == self.key:
                return described.parent
        return None

    def epochs(self) -> int:
        """Epochs that are done, of an unfinished training those at the last look."""
        folder = self.run if self.is_trained() else self.under_way()
        history = folder / "history.csv" if folder else None
        return len(read_csv(history)) if history and history.exists() else 0


def plan(root: Path) -> dict[str, Any]:
    """The plan of an unpacked campaign; `UserError` where there is none."""
    if not (root / PLAN).exists():
        raise UserError(f"{root / PLAN}: not there; unpack the campaign (tar xf PACK.tar) and work in its folder")
    content = read_json(root / PLAN)
    if content.get("format") != FORMAT:
        raise UserError(f"{root / PLAN}: is no plan of format {FORMAT}")
    return content


def places(root: Path) -> list[Place]:
    """Every cell of the plan, in its order."""
    return [
        Place(cell["part"], cell["method"], cell["seed"], cell["key"], root / cell["part"])
        for cell in plan(root)["cells"]
    ]


def settle(root: Path) -> None:
    """Unpack the data, and make each part a workspace: code and data are links."""
    campaign_data.unpack(root / "packed", root / "data")
    for part in {place.folder for place in places(root)}:
        for name, target in {**{name: Path("../..") / name for name in CODE}, "data": Path("../data")}.items():
            if not (part / name).is_symlink():
                (part / name).symlink_to(target)


def run(
    root: Path,
    until: float,
    parallel: int | None,
    finished: Callable[[], None],
    command: Callable[[Place], list[str]] | None = None,
) -> list[str]:
    """Work on open cells until all are done or `time.monotonic()` is `until`; returns what failed, a line each.

    `finished` is called after every cell. Processes that are still at work at the end are ended: their state was
    saved at most `checkpoint_seconds` before, and the next call continues there. A cell that failed is
    not tried again in this call.
    """
    waiting = [place for place in places(root) if not place.is_done()]
    at_once = parallel or _measured(root, waiting, until)
    working: dict[Place, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    with ExitStack() as logs:
        while (waiting or working) and time.monotonic() < until:
            while waiting and len(working) < at_once and time.monotonic() < until - LEAST:
                place = waiting.pop(0)
                print(f"begin {place.name}, epoch {place.epochs() + 1}", flush=True)
                place.log.parent.mkdir(parents=True, exist_ok=True)
                log = logs.enter_context(open(place.log, "ab"))
                working[place] = _start((command or _stages)(place), place.folder, log)
            if not working:
                break
            time.sleep(POLL)
            for place in [place for place, process in working.items() if process.poll() is not None]:
                code = working.pop(place).returncode
                if code:
                    print(_tail(place.log))
                    failed.append(f"{place.name}: exit status {code}: {_last_line(place.log)}")
                print(f"end {place.name}: " + (failed[-1] if code else "done"), flush=True)
                finished()
        for process in working.values():
            process.send_signal(signal.SIGTERM)
        for place, process in working.items():
            process.wait()
            print(f"stopped {place.name} after {place.epochs()} epochs", flush=True)
    return failed


def _stages(place: Place) -> list[str]:
    cell = ["--method", place.method, "--seed", str(place.seed)]
    return [sys.executable, "-m", "stages.node", "run", "job.json", *cell]


def _start(command: Sequence[str], folder: Path, log: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"ADT_LIVE": "0", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:])


def _last_line(log: Path) -> str:
    return _tail(log, 1) or "nothing said"


def _measured(root: Path, waiting: Sequence[Place], until: float) -> int:
    """How many processes at once make the most of the card, measured once on the first open cell; 1 on a CPU."""
    kept = root / "parallel.json"
    if kept.exists():
        return int(read_json(kept)["parallel"])
    if not waiting or machine.resolve("auto").type == "cpu":
        return 1
    speeds: dict[int, float] = {}
    for count in CHOICES:
        if time.monotonic() > until - 10 * SPEED_SECONDS:
            break
        speeds[count] = _speed(waiting[0], count)
        print(f"{count} at once: {speeds[count]:.1f} steps a second of {waiting[0].name}", flush=True)
        if count > 1 and speeds[count] < WORTH * max(v for c, v in speeds.items() if c < count):
            break
    best = 1
    for count, speed in speeds.items():
        best = count if speed > WORTH * speeds[best] else best
    write_json(kept, {"parallel": best, "steps_per_second": {str(count): speed for count, speed in speeds.items()}})
    return best


def _speed(place: Place, count: int) -> float:
    """Steps a second of `count` processes together; 0 where one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["job.json", place.method, str(place.seed), str(SPEED_SECONDS), folder]
        command = [sys.executable, "-m", "benchmarks.campaign_speed", *arguments]
        processes = [subprocess.Popen(command, cwd=place.folder, stdout=subprocess.PIPE) for _ in range(count)]
        while len(list(Path(folder).glob("*.ready"))) < count and not any(p.poll() is not None for p in processes):
            time.sleep(POLL)
        (Path(folder) / "go").touch()
        told = [process.communicate()[0] for process in processes]
    return sum(map(float, told)) if not any(process.returncode for process in processes) else 0.0


def status(root: Path) -> list[str]:
    """A line a cell: how far it is."""
    lines = []
    for place in places(root):
        epochs = bare.load(place.folder / "job.json").train.epochs
        state = "done" if place.is_done() else "trained" if place.is_trained() else "open"
        lines.append(
            f"{place.part:14}{place.method:12} seed {place.seed}  {state:8}{place.epochs():3} of {epochs} epochs"
        )
    return lines
