"""The scheduler of parallel cells, with a stand-in for DVC that records what it was asked to do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_dvc import at_work_in, events, impatient_leash, install, started, wait_until
from hypothesis import given
from hypothesis import strategies as st

from pipeline import graph, params, signals, slots
from pipeline.errors import UserError
from pipeline.graph import Graph, levels, outdated, stage_graph
from pipeline.scheduler import Running, Scheduler, reason
from pipeline.slots import Place, Slots

ROOT = Path(__file__).parents[1]
DIAMOND: Graph = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "e": set()}


@pytest.fixture
def fake_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path, monkeypatch)
    return tmp_path


def schedule(graph: Graph, slots: Slots, devices: int = 1) -> list[str]:
    return Scheduler(graph, slots, dict.fromkeys(graph, devices)).run()


def test_a_stage_starts_only_after_every_stage_before_it(fake_dvc: Path) -> None:
    assert schedule(DIAMOND, Slots([], 2)) == []
    order = events()
    assert {stage for _, stage in order} == set(DIAMOND)
    for stage, before in DIAMOND.items():
        for earlier in before:
            assert order.index(("end", earlier)) < order.index(("start", stage))


@pytest.mark.parametrize("cores, pause", [(1, "0.1"), (3, "0.8")])
def test_as_many_stages_at_once_as_slots_and_never_more(
    fake_dvc: Path, cores: int, pause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAUSE", pause)
    schedule({str(n): set() for n in range(4)}, Slots([], cores))
    running = most = 0
    for what, _ in events():
        running += 1 if what == "start" else -1
        most = max(most, running)
    assert most == cores


def test_every_cell_gets_devices_of_its_own(fake_dvc: Path) -> None:
    schedule({"a": set(), "b": set()}, Slots(["0", "GPU-5a", "2", "3"], 1), devices=2)
    lines = Path("events.txt").read_text().splitlines()
    assert {line.split()[2] for line in lines if line.startswith("start")} == {"0,GPU-5a", "2,3"}


def test_a_failed_stage_is_named_its_followers_wait_and_the_others_finish(
    fake_dvc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fail.txt").write_text("b\n")
    assert schedule(DIAMOND, Slots([], 1)) == ["b"]
    assert {stage for _, stage in events()} == {"a", "b", "c", "e"}
    said = capsys.readouterr().err
    assert "b failed with status 255" in said and "it broke" in said


@pytest.mark.parametrize(
    "log, why",
    [
        ("step 1\nerror: params.yaml: eps: no\nERROR: failed to reproduce 'b'", "error: params.yaml: eps: no"),
        ("Traceback\nValueError: 3\n\nERROR: failed to reproduce 'b'\n", "ValueError: 3"),
        ("ERROR: failed to reproduce 'b': missing data", "ERROR: failed to reproduce 'b': missing data"),
        ("epoch 3\nERROR: failed to reproduce 'b': failed to run: python -m b, exited with -9", "ended by SIGKILL"),
        ("Running stage 'b':\n> python -m b\n", "it said nothing"),
    ],
)
def test_why_a_stage_failed_is_read_from_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".work/logs").mkdir(parents=True)
    Path(".work/logs/b.log").write_text(log)
    assert reason("b") == why


# The graph


def test_outdated_is_what_changed_and_everything_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "dvc", lambda *arguments: '{"b": ["changed deps"]}')
    assert outdated(DIAMOND) == {"b": set(), "d": {"b"}}


def test_of_chosen_cells_only_they_and_what_they_wait_for_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(graph, "dvc", lambda *arguments: asked.extend(arguments[2:]) or '{"a": []}')
    assert outdated(DIAMOND, ["c"]) == {"a": set(), "c": {"a"}} and asked == ["a", "c"]


def test_what_dvc_complains_of_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    complaint = "ERROR: 'runs/a' is busy, it is being blocked by:\n  (PID 7): dvc repro\n\nIf there are none"
    Path("bin/dvc").write_text(f'#!/bin/sh\ncat >&2 <<"END"\n{complaint}\nEND\nexit 255\n')
    with pytest.raises(UserError, match="^dvc status --json: 'runs/a' is busy, it is being blocked by:$"):
        outdated(DIAMOND)


def test_the_graph_is_read_from_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    dot = 'strict digraph {\n"prepare";\n"train@m-0";\n"prepare" -> "train@m-0";\n}\n'
    monkeypatch.setattr(graph, "dvc", lambda *arguments: dot)
    assert stage_graph() == {"prepare": set(), "train@m-0": {"prepare"}}


def test_a_level_is_the_length_of_the_longest_way_there() -> None:
    assert levels(DIAMOND | {"f": {"a", "d"}}) == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0, "f": 3}


# Slots, and who gets them


class Simulated(Scheduler):
    """Stages without processes: the one that `finish` chooses ends. `trace`: what was started where, in order."""

    def __init__(self, graph: Graph, slots: Slots, devices: dict[str, int]) -> None:
        super().__init__(graph, slots, devices)
        self.trace: list[tuple[str, Place]] = []

    def _launch(self, stage: str, place: Place) -> Running:
        self.trace.append((stage, place))
        return Running(stage, None, place)

    def finish(self, which: int) -> None:
        over = self.running.pop(which % len(self.running))
        self.slots.give_back(over.place)
        self.done.add(over.stage)


machines = st.one_of(
    st.integers(1, 4).map(lambda cores: ([], cores)),
    st.tuples(st.lists(st.sampled_from("0123"), min_size=1, max_size=6), st.integers(1, 3)),
)


@given(machines, st.lists(st.integers(0, 5), min_size=1, max_size=14), st.data())
def test_nothing_is_given_twice_nothing_idles_without_need_and_nobody_waits_for_ever(
    machine: tuple[list[str], int], devices: list[int], data: st.DataObject
) -> None:
    gpus, cores = machine
    asked = {str(n): count for n, count in enumerate(devices)}
    scheduler = Simulated({stage: set() for stage in asked}, Slots(gpus, cores), asked)
    passed = dict.fromkeys(asked, 0)
    while scheduler._start() or scheduler.running:
        used = [gpu for r in scheduler.running for gpu in r.place.gpus]
        assert all(used.count(gpu) <= gpus.count(gpu) for gpu in used)
        assert sum(r.place.cores for r in scheduler.running) <= cores
        for stage in passed:
            began = [name for name, _ in scheduler.trace]
            before = began[: began.index(stage)] if stage in began else began
            passed[stage] = sum(int(other) > int(stage) and bool(asked[other] or not gpus) for other in before)
        size = len(gpus) or cores
        contending = [stage for stage in asked if asked[stage] or not gpus]
        assert all(passed[stage] <= size for stage in contending)
        if not any(passed[stage] == size and stage in scheduler.waiting for stage in contending):
            assert all(not fits(asked[stage], gpus, cores, scheduler.running) for stage in scheduler.waiting)
        scheduler.finish(data.draw(st.integers(0, 9)))
    assert scheduler.done == set(asked)
    for stage, place in scheduler.trace:
        distinct = len(set(gpus))
        assert len(set(place.gpus)) == len(place.gpus) == min(asked[stage], distinct)
        assert place.cores == (min(max(1, asked[stage]), cores) if not gpus else int(asked[stage] == 0))


def fits(devices: int, gpus: list[str], cores: int, running: list[Running]) -> bool:
    """Whether a cell could start now, counted from what runs."""
    used = [gpu for r in running for gpu in r.place.gpus]
    free_cores = cores - sum(r.place.cores for r in running)
    if not gpus:
        return free_cores >= min(max(1, devices), cores)
    open_gpus = sum(used.count(gpu) < gpus.count(gpu) for gpu in set(gpus))
    return open_gpus >= min(devices, len(set(gpus))) if devices else free_cores >= 1


def test_a_cell_of_two_devices_gets_its_turn_among_many_of_one() -> None:
    asked = {"long": 1} | {"big": 2} | {f"small-{n}": 1 for n in range(9)}
    scheduler = Simulated({stage: set() for stage in asked}, Slots(["0", "1"], 1), asked)
    while scheduler._start():
        scheduler.finish(-1)  # whatever started last ends first: the long one stays
    order = [stage for stage, _ in scheduler.trace]
    assert order[:4] == ["long", "small-0", "small-1", "big"]


def test_cells_on_shared_gpus_go_where_fewest_are() -> None:
    shared = Slots(["0", "1", "0", "1"], 1)
    assert [shared.take(1).gpus for _ in range(4)] == [("0",), ("1",), ("0",), ("1",)]
    assert shared.take(1) is None and shared.take(0).environment() == {}


def test_jobs_above_the_gpus_share_them_and_set_devices_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    p = params.load(ROOT / "params.yaml")
    p = p.model_copy(update={"runtime": p.runtime.model_copy(update={"device": "auto", "threads": 2})})
    monkeypatch.delenv(slots.VISIBLE, raising=False)
    assert (slots.of_this_machine(p, None).gpus, slots.of_this_machine(p, None).cores) == ({"0": 1, "1": 1}, 4)
    assert slots.of_this_machine(p, 3).gpus == {"0": 2, "1": 1} and slots.of_this_machine(p, 1).gpus == {"0": 1}
    monkeypatch.setenv(slots.VISIBLE, "GPU-8f, 3,-1,0")
    assert slots.of_this_machine(p, None).gpus == {"GPU-8f": 1, "3": 1}
    with pytest.raises(UserError, match="--jobs: must be at least 1"):
        slots.of_this_machine(p, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (slots.of_this_machine(p, None).gpus, slots.of_this_machine(p, None).cores) == ({}, 4)


# Signals

RUN = """
import sys
from pipeline import leash
from pipeline.scheduler import Scheduler
from pipeline.slots import Slots
leash.__file__ = sys.argv[1]
Scheduler({"a": set(), "b": set()}, Slots([], 2), {"a": 1, "b": 1}).run()
"""


@pytest.mark.parametrize("stubborn", ["", "yes"])
@pytest.mark.parametrize(
    "sent, status",
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
        ([signal.SIGINT, signal.SIGINT, signal.SIGTERM], None),
        ([signal.SIGKILL], -9),
    ],
)
def test_a_signal_ends_the_cells_too(
    fake_dvc: Path, sent: list[signal.Signals], status: int | None, stubborn: str
) -> None:
    environment = os.environ | {"PAUSE": "300", "PYTHONPATH": str(ROOT), "STUBBORN": stubborn}
    with subprocess.Popen(
        [sys.executable, "-c", RUN, impatient_leash(fake_dvc)], env=environment, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: len(started()) == 2)
        for number in sent:
            process.send_signal(number)
        said = process.communicate(timeout=20)[1].decode()
    assert process.returncode == status if status else process.returncode in (130, 143)
    assert status == -9 or "ending a, b" in said and "Traceback" not in said
    if status == -9:  # who is killed so waits for nobody, and its cells end by themselves
        wait_until(lambda: not at_work_in(fake_dvc))
    assert not at_work_in(fake_dvc)
    assert not any(what == "end" for what, _ in events())


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_between_cells_unwinds(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, signals.handled_by(signals.unwind):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert ended.value.code == 128 + number and signal.getsignal(number) == before


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with signals.handled_by(signals.unwind):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_an_activated_environment_dvc_is_found_beside_the_interpreter() -> None:
    code = "from pipeline.graph import find_dvc; import shutil; find_dvc(); print(shutil.which('dvc'))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(Path(sys.executable).parent / "dvc")
