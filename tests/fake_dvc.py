"""A stand-in for DVC that records what it was asked to do, and which processes are at work in a folder."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipeline import leash

# Logs `start STAGE DEVICES` and `end STAGE` with a pause between; stages named in fail.txt fail and say SAID.
SCRIPT = """\
#!/bin/sh
for stage in "$@"; do :; done
case " $* " in
*" dag "*) cat graph.dot; exit ;;
*" status "*)
    comma=
    printf '{'
    for stage in $(cat stages.txt); do
        [ -e "done/$stage" ] || { printf '%s"%s": []' "$comma" "$stage"; comma=,; }
    done
    printf '}'
    exit ;;
esac
echo "start $stage $CUDA_VISIBLE_DEVICES" >> events.txt
[ -z "$STUBBORN" ] || trap '' TERM
sleep ${PAUSE:-0.2} || exit 255
echo "end $stage" >> events.txt
if grep -qx "$stage" fail.txt 2>/dev/null; then
    printf '%b' "${SAID:-it broke}\\n" "ERROR: failed to reproduce '$stage': exited with 2\\n"
    exit 255
fi
mkdir -p done && touch "done/$stage"
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it first on PATH and go to `folder`."""
    script = folder / "bin" / "dvc"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(folder)


def describe(graph: Mapping[str, set[str]]) -> None:
    """Let `dvc dag` and `dvc status` tell of this graph, of which nothing is done."""
    Path("stages.txt").write_text("\n".join(graph))
    edges = [f'"{before}" -> "{stage}";' for stage in graph for before in sorted(graph[stage])]
    Path("graph.dot").write_text("\n".join(["strict digraph {", *(f'"{stage}";' for stage in graph), *edges, "}"]))


def events() -> list[tuple[str, str]]:
    """What was started and ended, in order."""
    path = Path("events.txt")
    return [(line.split()[0], line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


def started() -> list[str]:
    return [stage for what, stage in events() if what == "start"]


def at_work_in(folder: Path) -> set[int]:
    """The processes whose working folder is in `folder`, this one left out."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").readlink().is_relative_to(folder)
        except OSError:  # a zombie, or gone, or another user's
            continue
        if inside and int(process.name) != os.getpid():
            found.add(int(process.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Look every few hundredths of a second; a failed assertion after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def impatient_leash(folder: Path) -> Path:
    """A copy of pipeline/leash.py that waits a tenth of the time before SIGKILL."""
    code = Path(leash.__file__).read_text()
    assert "\nGRACE = 5.0 " in code
    copy = folder / "leash.py"
    copy.write_text(code.replace("\nGRACE = 5.0 ", "\nGRACE = 0.5 "))
    return copy
