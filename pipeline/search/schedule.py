"""The search of a method's hyper-parameters and of its training schedule."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline import live, machine
from pipeline.cell import Cell
from pipeline.errors import UserError
from pipeline.files import digest, digest_code
from pipeline.params import Params
from pipeline.params.search import SCHEDULE, Search
from pipeline.progress import Progress
from pipeline.search import storage, study
from pipeline.search.measuring import Measured, measure
from pipeline.search.pruners import pruner
from pipeline.search.space import base, changed, corners, made_with

WORK = live.WORK / "search"
DATABASE = WORK / "study.db"
# Beside the training: what decides which trials there are and what they measure.
SEARCH_CODE = tuple(
    f"pipeline/search/{name}.py" for name in ("measuring", "pruners", "schedule", "space", "storage", "study")
)


def run(p: Params, device: torch.device, on_trial: study.OnTrial, heartbeat: int | None = None) -> list[dict[str, Any]]:
    """Bring the study of `p.search` to its number of trials; returns a row a finished trial, in order.

    With ADT_STUDY set this process is one worker of a shared study, and returns when all trials are there; a worker
    that is silent for six times `heartbeat` seconds (of storage.HEARTBEAT: a minute) is taken for dead. `on_trial`
    receives the rows so far, those of earlier processes first. Test data are not read.
    """
    for point in corners(p.search):  # before anything is trained
        changed(p, point)
    pulse = heartbeat or storage.HEARTBEAT
    grace = pulse * storage.GRACE // storage.HEARTBEAT
    url = storage.shared_url()

    def evaluate(values: dict[str, Any], prune: study.Prune) -> Measured:
        cell = Cell(changed(p, values), p.search.method, p.search.training_seed)
        return measure(cell, device, WORK, lambda scores: prune(len(scores), scores[-1].robust))

    with contextlib.ExitStack() as stack:
        if url is None:
            stack.enter_context(_owner())
        kept = stack.enter_context(storage.shared(url, pulse, grace) if url else storage.local(DATABASE))
        pareto, sampler = p.search.objective == "pareto", study.SlotSampler(p.search.seed, p.search.startup)
        found = study.open_study(study_name(p), kept, pareto, sampler, pruner(p.search.pruning))
        todo = (found, p.search.trials, distributions(p.search), evaluate, on_trial)
        if url:
            study.run_shared(*todo, kept)
        else:
            study.run_alone(*todo)
        return study.rows(found)[: p.search.trials]


def work(p: Params) -> int:
    """Be a worker of the study that ADT_STUDY names until all its trials are there; returns how many."""
    if storage.shared_url() is None:
        raise UserError(
            f"{storage.VARIABLE} is not set; workers share a study by a URL, such as sqlite:////tmp/study.db"
        )
    device = machine.prepare(p.runtime)
    with Progress(f"search of {p.search.method}", p.search.trials) as bar:
        return len(run(p, device, lambda rows: bar.reach(min(len(rows), p.search.trials))))


def study_name(p: Params) -> str:
    """A name that changes with everything a trial is, but neither with the budget nor with what is searched."""
    p = base(p)
    made = [made_with(p)["search"], Cell(p, p.search.method, p.search.training_seed).fingerprint()]
    return f"search-{digest([made, digest_code(Path(), *SEARCH_CODE), optuna.__version__])[:32]}"


def distributions(search: Search) -> dict[str, BaseDistribution]:
    """The space in Optuna's words, in the order of the table's columns."""
    made: dict[str, BaseDistribution] = {}
    for name, limits in search.space.items():
        if search.is_whole(name):
            made[name] = IntDistribution(int(limits.low), int(limits.high), log=limits.log)
        else:
            made[name] = FloatDistribution(limits.low, limits.high, log=limits.log)
    if search.schedules:
        made[SCHEDULE] = CategoricalDistribution([schedule.name for schedule in search.schedules])
    return made


@contextlib.contextmanager
def _owner() -> Iterator[None]:
    """Be the only process at the study of this workspace, or say how several may share one."""
    with live.lock("search", wait=False) as mine:
        if not mine:
            raise UserError(
                f"{DATABASE}: another process is searching here; set {storage.VARIABLE} to a database to share a study"
            )
        yield
