"""Runs that are timed, in a temporary copy of the project: a helper of `benchmarks.scale_local`."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import params, presets
from pipeline.errors import UserError
from pipeline.graph import Graph
from pipeline.scheduler import run_cells
from pipeline.slots import Slots

ROOT = Path(__file__).parents[1]
PRESET, SEEDS, EPOCHS = "digits", (0, 1), 4
ROUNDS = 4  # turns of every step that is timed
SHARED, FIRST, LAST = "adt_exp", 2, 9  # the training over two processes: method, and epochs of its two runs
OUTPUTS = ("runs/", "verdicts/", "probes/", "results/", "dvc.lock", "benchmarks/results/")


def copy_project(folder: Path) -> None:
    """The files that git knows or does not ignore, without results, in `folder`, which becomes a repository."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, capture_output=True, text=True)
    if done.returncode:
        raise UserError("--measure: needs git and the project's own repository")
    for name in done.stdout.splitlines():
        if not name.startswith(OUTPUTS) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)


def use(epochs: int, *overrides: str) -> None:
    """Write params.yaml: the preset with so many epochs."""
    chosen = ["runtime.device=cpu", "runtime.threads=1", f"matrix.seeds={list(SEEDS)}", f"train.epochs={epochs}"]
    presets.use(PRESET, [*chosen, *overrides], params.PARAMS_FILE)


def steps(processes: int) -> dict[str, float]:
    """Medians of `benchmarks.scale_steps` in so many processes at once, averaged over them, by method and step."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.scale_steps", str(ROUNDS), folder]
        started = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(processes)]
        try:
            while len(list(Path(folder).glob("*.ready"))) < processes and all(p.poll() is None for p in started):
                time.sleep(0.05)
            (Path(folder) / "go").touch()
            told = [json.loads(process.communicate()[0] or "{}") for process in started]
        finally:
            for process in started:
                process.kill()  # does nothing to one that has ended
    if any(process.returncode for process in started):
        raise UserError("--measure: benchmarks.scale_steps failed; what it said stands above")
    return {name: statistics.mean(one[name] for one in told) for name in told[0]}


def run(cells: Sequence[str], jobs: int) -> float:
    """Seconds that the scheduler takes for cells that do not wait for one another, computed again whatever is there."""
    graph: Graph = {cell: set() for cell in cells}
    began = time.monotonic()
    if run_cells(params.load(), graph, Slots([], jobs), force=True):
        raise UserError("--measure: a training failed; what it said stands above")
    return time.monotonic() - began


def epoch_seconds(devices: int) -> float:
    """Seconds of an epoch of one training over so many processes, its start left out: a long run less a short one."""
    taken = {}
    for epochs in (FIRST, LAST):
        use(epochs, f"train.devices={devices}")
        began = time.monotonic()
        command(sys.executable, "-m", "stages.train", "--method", SHARED, "--seed", str(SEEDS[0]))
        taken[epochs] = time.monotonic() - began
    use(EPOCHS)
    return (taken[LAST] - taken[FIRST]) / (LAST - FIRST)


def command(*words: str) -> None:
    """Run a command of the project in the current folder; `UserError` with its last line where it fails."""
    environment = os.environ | {"ADT_LIVE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError(f"--measure: {' '.join(words)}: {said[-1]}")
