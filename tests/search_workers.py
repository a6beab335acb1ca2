"""Three workers of one study, each a process: one is killed in its first trial, the others end the study.

`python search_workers.py URL FOLDER TRIALS`: every worker writes the values that it tries to FOLDER/NAME, a line
each. Exit status 0 if the two that live end without an error.
"""

import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from pipeline.search import storage, study
from pipeline.search.measuring import Measured
from pipeline.search.pruners import pruner

HEARTBEAT, GRACE = 1, 2


def work(url: str, folder: Path, name: str, trials: int) -> None:
    """Be a worker; the one called `lost` never ends its first trial, the others end none before it has begun one."""

    def evaluate(values: dict[str, Any], prune: study.Prune) -> Measured:
        with (folder / name).open("a") as book:
            book.write(f"{values}\n")
        while name == "lost" or not (folder / "lost").exists():
            time.sleep(0.02)
        return Measured(values["lam"], 0.9, 10 * values["steps"], 1, None)

    space = {"lam": FloatDistribution(0, 1), "steps": IntDistribution(1, 7)}
    with storage.shared(url, HEARTBEAT, GRACE) as kept:
        found = study.open_study("study", kept, True, study.SlotSampler(0, 4), pruner(None))
        study.run_shared(found, trials, space, evaluate, lambda rows: None, kept)


def main() -> int:
    """Start all, kill one, wait for the others."""
    warnings.simplefilter("ignore")
    url, folder, trials = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    forks = multiprocessing.get_context("fork")
    names = ("lost", "one", "two")
    workers = {name: forks.Process(target=work, args=(url, folder, name, trials), daemon=True) for name in names}
    for worker in workers.values():
        worker.start()
    while not (folder / "lost").exists() or not (folder / "lost").read_text().endswith("\n"):
        if not workers["lost"].is_alive():
            return 1
        time.sleep(0.02)
    workers["lost"].kill()
    survivors = [workers["one"], workers["two"]]
    for worker in survivors:
        worker.join(60)
    return int(any(worker.exitcode != 0 for worker in survivors))


if __name__ == "__main__":
    sys.exit(main())
