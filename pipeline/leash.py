"""A command on a leash: it ends, with everything it started, when whoever started it lets go or dies.

`start` runs this file as a small process of its own between the two. It notices by an end of its standard
input that the starter let go, or was killed by a signal that nobody can catch. On Linux it adopts orphans
(prctl(2), PR_SET_CHILD_SUBREAPER), so that a process in a session of its own is found, too; elsewhere it
reaches the command's process group only.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GRACE = 5.0  # seconds between asking to end and SIGKILL
LINUX = sys.platform == "linux"


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start `command` on a leash; `options` as of `subprocess.Popen`. Its status is the command's, as a shell's is.

    The command reads nothing (/dev/null) and is in a session of its own, out of reach of the terminal's Ctrl-C.
    """
    # -I -S: this file needs only the standard library; 15 ms instead of 50.
    here = [sys.executable, "-I", "-S", __file__]
    return subprocess.Popen([*here, *command], stdin=subprocess.PIPE, start_new_session=True, **options)


def let_go(*processes: subprocess.Popen[bytes]) -> None:
    """End commands that `start` started, with everything they started, and wait until all are gone."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        process.wait()


def run(command: Sequence[str], **options: Any) -> int:
    """Run `command` on a leash and return its status; an exception on the way, as of a signal, ends it first."""
    process = start(command, **options)
    try:
        return process.wait()
    finally:
        let_go(process)


def main(command: Sequence[str]) -> int:
    """The process between: run the command; end what is left when it is over, or the starter lets go."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # noted by the pipe
    prctl = _prctl()
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    # This process has one thread, so that code may run between fork and exec: the command dies with the leash.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=lambda: prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG
    )
    asked = False
    while process.poll() is None and not asked:
        ready, _, _ = select.select([0, reading], [], [])
        noted = os.read(reading, 4096) if reading in ready else b""
        asked = 0 in ready or any(number != signal.SIGCHLD for number in noted)
    _end(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """End every descendant and reap the command.

    The command itself is not asked: it ends by itself when what it runs has ended. DVC rewrites dvc.lock in
    place, and a signal at that moment would leave half of it. SIGKILL comes after `GRACE` seconds.
    """
    deadline = time.monotonic() + GRACE
    asked = {process.pid}
    while not _all_gone(process):
        late = time.monotonic() > deadline
        left = _descendants(process.pid)
        for number in left if late else left - asked:
            _send(number, signal.SIGKILL if late else signal.SIGTERM)
        asked |= left
        time.sleep(0.02)


def _all_gone(process: subprocess.Popen[bytes]) -> bool:
    """Reap what has ended; whether that was all: an adopter of orphans without children has no descendants."""
    if process.poll() is None:
        return False
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    except ChildProcessError:
        return not _descendants(process.pid)


def _send(number: int, what: int) -> bool:
    """Send a signal to a process, or to a group by its negative number; whether there is one."""
    try:
        os.kill(number, what)
    except (ProcessLookupError, PermissionError):  # the second, on macOS, of a group of zombies
        return False
    return True


def _descendants(command: int) -> set[int]:
    """The live processes below this one; without /proc the command's group, as one negative number."""
    if not LINUX:
        return {-command} if _send(-command, 0) else set()
    children: dict[int, list[int]] = {}
    alive = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = int(status.parent.name), status.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(rest[1]), []).append(number)
        if rest[0] not in "ZX":
            alive.add(number)
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting += new
    return found & alive


def _prctl() -> Callable[[int, int], object]:
    return ctypes.CDLL(None).prctl if LINUX else lambda option, value: None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
