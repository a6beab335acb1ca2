"""A command on a leash ends with everything it started: when it is let go, and when its starter or the leash dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_dvc import at_work_in, impatient_leash, wait_until

from pipeline import leash, signals

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

# A process that starts another one in a session of its own, which its parent leaves behind and which ignores SIGTERM.
DAEMON = """\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.setsid()
open("daemon", "w").close()
time.sleep(300)
"""
CELL = f"""\
import os, subprocess, sys, time
subprocess.Popen(["sh", "-c", '"$0" -S -c "$1" & exit', sys.executable, {DAEMON!r}]).wait()
while not os.path.exists("daemon"): time.sleep(0.01)
open("ready", "w").close()
time.sleep(300)
"""
COMMAND = ["sh", "-c", '"$0" -S -c "$1"; echo $? > status', sys.executable, CELL]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a leash with less patience."""
    monkeypatch.setattr(leash, "__file__", str(impatient_leash(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started() -> "subprocess.Popen[bytes]":
    process = leash.start(COMMAND)
    wait_until(Path("ready").exists)
    return process


@pytest.mark.parametrize("command, status", [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_the_status_is_the_commands(command: str, status: int) -> None:
    assert leash.run(["sh", "-c", command]) == status


def test_the_command_reads_nothing_and_writes_where_it_is_told(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        assert leash.run(["sh", "-c", "cat; echo $NAME"], stdout=out, env=os.environ | {"NAME": "me"}) == 0
    assert (tmp_path / "out").read_text() == "me\n"


def test_who_is_let_go_leaves_nothing_behind_and_may_finish_what_it_does_itself(folder: Path) -> None:
    process = started()
    assert len(at_work_in(folder)) >= 4
    leash.let_go(process)
    assert not at_work_in(folder)
    asked_to_end = 128 + signal.SIGTERM
    assert Path("status").read_text().strip() == str(asked_to_end), "the shell was not killed, its child was asked"


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_to_the_leash_ends_everything(folder: Path, number: signal.Signals) -> None:
    with started() as process:
        process.send_signal(number)
        process.wait(timeout=20)
        assert not at_work_in(folder)


def test_what_a_command_leaves_behind_ends_with_it(folder: Path) -> None:
    assert leash.run(["sh", "-c", "sleep 300 & setsid sleep 300 & exit 4"]) == 4
    assert not at_work_in(folder)


def test_a_starter_killed_at_once_leaves_nothing_behind(folder: Path) -> None:
    code = f"from pipeline import leash; leash.__file__ = 'leash.py'; leash.run({COMMAND!r})"
    root = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}) as starter:
        wait_until(Path("ready").exists)
        starter.kill()
    wait_until(lambda: not at_work_in(folder))


def test_a_leash_killed_at_once_ends_the_command(folder: Path) -> None:
    with leash.start(["sleep", "300"]) as process:
        wait_until(lambda: len(at_work_in(folder)) == 2)
        process.kill()
    wait_until(lambda: not at_work_in(folder))


def test_an_exception_while_it_runs_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = subprocess.Popen.wait

    def interrupted(process: "subprocess.Popen[bytes]") -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        leash.run(["sleep", "300"])
    assert not at_work_in(folder)
