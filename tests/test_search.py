"""The search: the same trials whatever interrupts it, none over the budget, and none that saw test data."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from postgres_server import postgres_server

from pipeline import cell, live, params
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.search import schedule, storage, study, table
from pipeline.search.measuring import Measured
from pipeline.search.pruners import HalvingPruner, pruner
from pipeline.search.space import base, changed, made_with
from pipeline.training.loop import Diverged, Trainer
from pipeline.yaml_files import read_yaml
from stages import search as stage

ROOT = Path(__file__).parents[1]
SPACE = {
    "lam": FloatDistribution(0.001, 10, log=True),
    "steps": IntDistribution(1, 7),
    "schedule": CategoricalDistribution(["constant", "cosine"]),
}
EPOCHS = 4
CPU = torch.device("cpu")
PRUNERS = {
    "none": None,
    "median": params.Pruning(name="median", warmup=1, startup=2),
    "halving": params.Pruning(name="halving", warmup=1, reduction=2),
}


class Killed(BaseException):
    """Stands for the end of a process: nothing in it catches this."""


class Evaluation:
    """Measures a point by formulas; remembers which, and can be killed at the n-th, before the answer."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.points: list[dict[str, Any]] = []
        self.killed_at = killed_at

    def __call__(self, values: dict[str, Any], prune: study.Prune) -> Measured:
        self.points.append(values)
        killed = len(self.points) == self.killed_at
        if values["lam"] > 6:
            raise Killed if killed else Diverged("diverged")
        bonus = 0.1 if values["schedule"] == "cosine" else 0.0
        for epoch in range(1, EPOCHS + 1):
            robust = round((0.3 + bonus + values["steps"] / 20) * epoch / EPOCHS, 6)
            given_up = prune(epoch, robust)
            if killed and (given_up or epoch == 2):
                raise Killed
            if given_up:
                return Measured(robust, 0.9, 100 * epoch, epoch, epoch)
        return Measured(robust, 0.9, 100 * EPOCHS * values["steps"], EPOCHS, None)


def opened(kept: Any, pruning: str = "none", pareto: bool = False, seed: int = 0) -> optuna.Study:
    return study.open_study("study", kept, pareto, study.SlotSampler(seed, 4), pruner(PRUNERS[pruning]))


def run(kept: Any, trials: int, evaluate: Evaluation, **kind: Any) -> list[dict[str, Any]]:
    """What a process that brings the study in `kept` to `trials` trials finds there at its end."""
    found = opened(kept, **kind)
    study.run_alone(found, trials, SPACE, evaluate, lambda rows: None)
    return study.rows(found)


KINDS = [{"pareto": True}, {"pruning": "none"}, {"pruning": "median"}, {"pruning": "halving"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_study_in_pieces_and_killed_in_each_is_the_study_in_one(kind: dict[str, Any]) -> None:
    whole, pieces = run(InMemoryStorage(), 12, Evaluation(), **kind), InMemoryStorage()
    assert [row["number"] for row in whole] == list(range(12))
    for budget, killed_at in ((12, 1), (12, 3), (12, 4), (9, None), (12, 2)):
        evaluate = Evaluation(killed_at)
        try:
            part = run(pieces, budget, evaluate, **kind)
            assert part == whole[:budget]
        except Killed:
            assert len(evaluate.points) == killed_at
    assert run(pieces, 12, Evaluation(), **kind) == whole


def test_an_extended_study_repeats_nothing_and_a_smaller_one_evaluates_nothing() -> None:
    first, more, less, kept = Evaluation(), Evaluation(), Evaluation(), InMemoryStorage()
    rows = run(kept, 5, first)
    assert run(kept, 8, more)[:5] == rows and len(more.points) == 3
    run(kept, 4, less)
    assert less.points == []


def test_another_seed_is_another_search() -> None:
    one, other = (run(InMemoryStorage(), 3, Evaluation(), seed=seed) for seed in (0, 1))
    assert one != other


def test_a_diverged_trial_is_a_part_of_the_budget_without_measurements() -> None:
    rows = run(InMemoryStorage(), 25, Evaluation())
    lost = [row for row in rows if row["state"] == "diverged"]
    assert lost and all(row["lam"] > 6 and "val_robust" not in row for row in lost)
    assert len(rows) == 25


def test_what_is_suggested_has_three_significant_digits_and_stays_in_the_space() -> None:
    evaluate = Evaluation()
    run(InMemoryStorage(), 15, evaluate)
    for values in evaluate.points:
        assert values["lam"] == float(f"{values['lam']:.3g}") and 0.001 <= values["lam"] <= 10


def test_the_first_epochs_are_pruned_and_no_trial_after_its_warmup_is_worse_than_the_median() -> None:
    rows = run(InMemoryStorage(), 20, Evaluation(), pruning="median")
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and all(1 <= row["pruned_at"] < EPOCHS for row in pruned)
    for row in pruned:
        before = [r["val_robust"] for r in rows[: row["number"]] if r["state"] == "complete"]
        # Accuracies grow in proportion to the epoch here, so the median at an epoch is that share of the last one's.
        assert row["val_robust"] < sorted(before)[len(before) // 2] * row["pruned_at"] / EPOCHS + 1e-6
    complete = [row for row in rows if row["state"] == "complete"]
    assert min(row["number"] for row in pruned) >= 2 and len(complete) + len(pruned) <= 20


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 3), st.integers(2, 3))
def test_halving_keeps_the_best_share_of_those_that_came_as_far(values: list[int], first: int, factor: int) -> None:
    """Held against a simulation on lists: trials one after the other, each with one value at all of its epochs."""
    rungs = {first * factor**power for power in range(4)}
    found = optuna.create_study(direction="maximize", pruner=HalvingPruner(first, factor))
    reached: dict[int, list[int]] = {}
    for value in values:
        trial = found.ask()
        for epoch in range(1, 10):
            trial.report(value, epoch)
            expected = False
            if epoch in rungs:
                came = [*reached.setdefault(epoch, []), value]
                reached[epoch] = came
                expected = value < sorted(came, reverse=True)[max(1, len(came) // factor) - 1]
            assert trial.should_prune() == expected
            if expected:
                break
        found.tell(trial, state=optuna.trial.TrialState.PRUNED)


# The table


accuracies = st.integers(0, 5).map(lambda n: n / 5)


@st.composite
def tables(draw: st.DrawFn) -> list[table.Row]:
    states = st.sampled_from(["complete", "complete", "pruned"])
    cells = draw(st.lists(st.tuples(states, accuracies, st.integers(1, 5)), min_size=1, max_size=12))
    return [
        {"number": number, "state": state, "val_robust": robust, "gradient_evaluations": cost}
        for number, (state, robust, cost) in enumerate(cells)
    ]


@given(tables())
def test_the_front_is_what_nothing_beats_and_covers_everything(rows: list[table.Row]) -> None:
    front, complete = table.front(rows), [row for row in rows if row["state"] == "complete"]

    def as_good(one: table.Row, other: table.Row) -> bool:
        return one["val_robust"] >= other["val_robust"] and one["gradient_evaluations"] <= other["gradient_evaluations"]

    for row in complete:
        assert any(as_good(kept, row) for kept in front)
    for kept in front:
        assert kept["state"] == "complete"
        assert all(as_good(kept, row) for row in complete if as_good(row, kept))
    if complete:
        assert table.best(rows) in front


@given(tables())
def test_the_chosen_trial_is_the_most_robust_then_the_cheapest_then_the_first(rows: list[table.Row]) -> None:
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete:
        with pytest.raises(UserError, match="no trial came to its end"):
            table.best(rows)
        return
    order = sorted(complete, key=lambda r: (-r["val_robust"], r["gradient_evaluations"], r["number"]))
    assert table.best(rows) == order[0]


# Parameters


def digits(**changes: Any) -> dict[str, Any]:
    values = read_yaml(ROOT / "presets/digits.yaml")
    return values | {"search": values["search"] | changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"space": {"tau": {"low": 0, "high": 1}}},
            "search: space: adt_exp has no 'tau'; there are lam, outer_samples, steps",
        ),
        ({"method": "at_pgd", "space": {"lam": {"low": 0, "high": 1}}}, "space: at_pgd has no 'lam'; there are steps"),
        (
            {"space": {"lam": {"low": -1, "high": 1}}},
            "space.lam.low: input should be greater than or equal to 0, not -",
        ),
        ({"space": {"ema": {"low": 0, "high": 1}}}, "space.ema.high: input should be less than 1, not 1"),
        ({"space": {"steps": {"low": 1, "high": 2.5}}}, "space.steps.high: should be a whole number, not 2.5"),
        ({"space": {"lam": {"low": 2, "high": 1}}}, "search.space.lam: low must not exceed high, but 2 > 1"),
        ({"space": {"lam": {"low": 0, "high": 1, "log": True}}}, "search.space.lam: log needs low > 0, not 0"),
        ({"space": {"lam": {"lo": 0, "high": 1}}}, "search.space.lam.lo: unknown key; allowed here: low, high, log"),
        ({"space": {}}, "search.space: dictionary should have at least 1 item"),
        ({"schedules": [{"name": "one_cycle"}]}, "search.schedules.0: one_cycle needs warmup"),
        ({"schedules": [{"name": "cosine"}, {"name": "cosine"}]}, "schedules: names must be distinct"),
        ({"pruning": {"name": "median", "warmup": 1, "startup": 2}}, "pruning: only objective robust gives trials up"),
        ({"objective": "robust", "pruning": {"name": "median", "warmup": 1}}, "search.pruning: median needs startup"),
        ({"method": "standard"}, "method: standard is selected by natural accuracy"),
        ({"trials": 0}, "search.trials: input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_a_wrong_search_is_one_line_that_names_the_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        params.parse(digits(**changes), "params.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "name", "path"),
    [
        ("adt_imp_am", "tau", "methods.adt_imp_am.tau"),
        ("adt_exp_am", "generator_lr", "methods.adt_exp_am.generator_lr"),
        ("trades", "beta", "methods.trades.beta"),
        ("at_pgd", "momentum", "train.optimizer.momentum"),
    ],
)
def test_every_number_of_a_method_and_of_the_loop_can_be_searched(method: str, name: str, path: str) -> None:
    p = params.parse(digits(method=method, space={name: {"low": 0.25, "high": 0.5}}, schedules=[]), "params.yaml")
    value: Any = changed(p, {name: 0.375}).model_dump(by_alias=True)
    for part in path.split("."):
        value = value[part]
    assert value == 0.375 and p.search.paths() == {name: path}


def test_a_trial_changes_its_own_keys_and_no_other() -> None:
    p = params.parse(digits(), "params.yaml")
    values = {"lam": 0.5, "steps": 3, "samples": 2, "inner_lr": 0.1, "lr": 0.2, "weight_decay": 0.001, "epochs": 4}
    found = changed(p, values | {"schedule": "one_cycle"})
    assert (found.methods.adt_exp.lam, found.methods.adt_exp.steps, found.train.epochs) == (0.5, 3, 4)
    assert found.train.schedule == params.Schedule(name="one_cycle", warmup=0.3)
    assert base(found) == base(p) and made_with(found) == made_with(p)


# Trainings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., params.Params]:
    """Parameters of the smoke preset's search in a folder with its data, without test images; code is one constant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(storage.VARIABLE, raising=False)
    for module in (cell, schedule):
        monkeypatch.setattr(module, "digest_code", lambda *_: "code")

    def make(**changes: Any) -> params.Params:
        values = read_yaml(ROOT / "presets/smoke.yaml")
        p = params.parse(values | {"search": values["search"] | changes}, "smoke")
        store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)
        (Path("data") / p.data.name / "test.npz").unlink()
        monkeypatch.setattr(params, "load", lambda: p)
        return p

    return make


FIGURES = [
    f"{name}.{kind}" for name in ("history", "importance", "parallel", "pareto", "slice") for kind in ("png", "svg")
]


def outputs() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in table.TRIALS.parent.iterdir()}


def forget() -> None:
    """Remove what a search left to continue from."""
    for path in sorted(schedule.WORK.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_the_stage_needs_no_test_images_and_gives_the_same_bytes_whenever_it_is_killed(workspace, monkeypatch) -> None:
    workspace(space={"steps": {"low": 1, "high": 2}, "epochs": {"low": 1, "high": 2}}, trials=2)
    stage.main()
    whole = outputs()
    assert sorted(whole) == sorted(["trials.csv", "best.json", *FIGURES])
    forget()
    batches, step = [0], Trainer.step

    def mortal(self: Trainer, *arguments: Any) -> dict[str, float]:
        batches[0] += 1
        if batches[0] % 5 == 0:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", mortal)
    deaths = 0
    for _ in range(50):
        try:
            stage.main()
            break
        except Killed:
            deaths += 1
    assert deaths > 2 and outputs() == whole
    assert not list(schedule.WORK.rglob("state.pt"))
    before = batches[0]
    schedule.run(params.load(), CPU, lambda rows: None)
    assert batches[0] == before, "a finished search is only read"


def test_a_training_that_was_done_is_not_done_again_for_another_study(workspace, monkeypatch) -> None:
    p = workspace(trials=2)
    rows = schedule.run(p, CPU, lambda rows: None)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    schedule.DATABASE.unlink()
    assert schedule.run(p, CPU, lambda rows: None) == rows


def test_a_given_up_training_counts_the_epochs_it_trained(workspace, monkeypatch) -> None:
    pruning = {"name": "median", "warmup": 1, "startup": 1}
    space = {"steps": {"low": 1, "high": 1}, "epochs": {"low": 2, "high": 2}, "lr": {"low": 0.01, "high": 0.1}}
    p = workspace(objective="robust", pruning=pruning, space=space, trials=2, startup=1)
    always = type("Always", (optuna.pruners.NopPruner,), {"prune": lambda *_: True})
    monkeypatch.setattr(schedule, "pruner", lambda _: always())
    rows = schedule.run(p, CPU, lambda rows: None)
    assert [(row["state"], row["pruned_at"], row["selected_epoch"]) for row in rows] == [("pruned", 1, 1)] * 2
    examples = read_json(Path("data/digits/meta.json"))["counts"]["train"]
    assert rows[0]["gradient_evaluations"] == examples * (1 * p.methods.adt_exp.samples + 1)
    assert not list(schedule.WORK.rglob("state.pt"))


def test_the_study_is_another_one_after_any_change_but_of_the_budget_and_of_what_is_searched(workspace) -> None:
    name = schedule.study_name(workspace())
    same = changed(workspace(), {"lam": 1.0, "steps": 2, "lr": 0.1, "epochs": 1, "schedule": "cosine"})
    assert schedule.study_name(workspace(trials=50)) == schedule.study_name(same) == name
    others = [
        workspace(startup=1),
        workspace(seed=1),
        workspace(training_seed=1),
        workspace(objective="robust"),
        workspace(schedules=[{"name": "constant"}]),
        changed(workspace(space={"ema": {"low": 0.5, "high": 0.5}}, schedules=[]), {"ema": 0.5}),
    ]
    names = [schedule.study_name(p) for p in others]
    assert len({name, *names}) == len(names) + 1


def test_a_second_process_is_told_how_to_share(workspace) -> None:
    p = workspace()
    with live.lock("search"), pytest.raises(UserError, match="another process is searching here; set ADT_STUDY"):
        schedule.run(p, CPU, lambda rows: None)


# Workers


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that several processes can share."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.db'}"
        return
    with postgres_server() as url:
        yield url


def test_workers_share_a_study_keep_to_its_budget_and_retry_the_trial_of_a_killed_one(
    address: str, tmp_path: Path
) -> None:
    """Three use an empty database at once; one is killed in its first trial."""
    trials, folder = 7, tmp_path / "logs"
    folder.mkdir()
    command = [sys.executable, str(ROOT / "tests/search_workers.py"), address, str(folder), str(trials)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tried = [line for name in ("one", "two") if (folder / name).exists() for line in _lines(folder / name)]
    assert set(_lines(folder / "lost")) < set(tried), "the killed worker's values were tried again"
    with storage.shared(address) as kept:
        found = opened(kept, pareto=True)
        assert len(study.rows(found)) == len(tried) == trials, "not one trial more than the budget was evaluated"
        assert not [trial for trial in found.get_trials(deepcopy=False) if not trial.state.is_finished()]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_one_worker_finds_what_a_process_alone_finds(tmp_path: Path) -> None:
    alone = run(InMemoryStorage(), 8, Evaluation(), pareto=True)
    with storage.shared(f"sqlite:///{tmp_path / 'shared.db'}") as kept:
        shared = opened(kept, pareto=True)
        study.run_shared(shared, 8, SPACE, Evaluation(), lambda rows: None, kept)
        assert study.rows(shared) == alone


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////no/such/folder/x.db", "postgresql://me:secret@127.0.0.1:9/x?connect_timeout=1"]
)
def test_a_database_that_is_not_there_is_one_line_without_its_password(url: str, monkeypatch) -> None:
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    with pytest.raises(UserError, match="ADT_STUDY=.*: cannot be used") as caught, storage.shared(url):
        pass
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_worker_without_a_database_is_told_so(workspace) -> None:
    with pytest.raises(UserError, match="ADT_STUDY is not set"):
        schedule.work(workspace())
