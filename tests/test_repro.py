"""The scheduler of parallel cells, with a stand-in for DVC that records what it was asked to do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import graph
from pipeline.graph import Graph, levels, outdated, stage_graph
from pipeline.repro import Scheduler

DIAMOND: Graph = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "e": set()}


@pytest.fixture
def fake_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `dvc` that logs `start STAGE`, waits, logs `end STAGE`, and fails for stages called in fail.txt."""
    script = tmp_path / "bin" / "dvc"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        'for stage in "$@"; do :; done\n'
        'echo "start $stage $CUDA_VISIBLE_DEVICES" >> events.txt\n'
        "sleep ${PAUSE:-0.2}\n"
        'echo "end $stage" >> events.txt\n'
        'if grep -qx "$stage" fail.txt 2>/dev/null; then echo "it broke"; exit 255; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "events.txt"


def events(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split()[:2]) for line in path.read_text().splitlines()]


def test_a_stage_starts_only_after_every_stage_before_it(fake_dvc: Path) -> None:
    assert Scheduler(DIAMOND, [{}, {}]).run() == []
    order = events(fake_dvc)
    assert {stage for _, stage in order} == set(DIAMOND)
    for stage, before in DIAMOND.items():
        for earlier in before:
            assert order.index(("end", earlier)) < order.index(("start", stage))


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_as_many_stages_at_once_as_slots_and_never_more(
    fake_dvc: Path, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAUSE", "1")
    Scheduler({str(n): set() for n in range(4)}, [{}] * slots).run()
    running = most = 0
    for what, _ in events(fake_dvc):
        running += 1 if what == "start" else -1
        most = max(most, running)
    assert most == slots


def test_every_cell_gets_a_device_of_its_own(fake_dvc: Path) -> None:
    slots = [{"CUDA_VISIBLE_DEVICES": str(n)} for n in range(2)]
    Scheduler({"a": set(), "b": set()}, slots).run()
    devices = {line.split()[2] for line in fake_dvc.read_text().splitlines() if line.startswith("start")}
    assert devices == {"0", "1"}


def test_a_failed_stage_is_named_its_followers_wait_and_the_others_finish(
    fake_dvc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fail.txt").write_text("b\n")
    assert Scheduler(DIAMOND, [{}]).run() == ["b"]
    assert {stage for _, stage in events(fake_dvc)} == {"a", "b", "c", "e"}
    said = capsys.readouterr().err
    assert "b failed with status 255" in said and "it broke" in said


def test_outdated_is_what_changed_and_everything_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "dvc", lambda *arguments: '{"b": ["changed deps"]}')
    assert outdated(DIAMOND) == {"b": set(), "d": {"b"}}


def test_the_graph_is_read_from_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    dot = 'strict digraph {\n"prepare";\n"train@m-0";\n"prepare" -> "train@m-0";\n}\n'
    monkeypatch.setattr(graph, "dvc", lambda *arguments: dot)
    assert stage_graph() == {"prepare": set(), "train@m-0": {"prepare"}}


def test_a_level_is_the_length_of_the_longest_way_there() -> None:
    assert levels(DIAMOND | {"f": {"a", "d"}}) == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0, "f": 3}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_cells_too(fake_dvc: Path, signum: signal.Signals) -> None:
    code = "from pipeline.repro import Scheduler; Scheduler({'a': set(), 'b': set()}, [{}, {}]).run()"
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PAUSE": "300", "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not fake_dvc.exists() or len(events(fake_dvc)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(timeout=20) != 0
    left = subprocess.run(["pgrep", "-f", f"{fake_dvc.parent}/bin/dvc"], capture_output=True, text=True).stdout
    assert left == ""


def test_without_an_activated_environment_dvc_is_found_beside_the_interpreter() -> None:
    code = "from pipeline.repro import _find_tools; import shutil; _find_tools(); print(shutil.which('dvc'))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(Path(sys.executable).parent / "dvc")
