"""The signals that ask a command to end: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handler(number, frame)` answer the signals; SIGHUP stays ignored where it is (`nohup`). Main thread only."""
    heard = [n for n in ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def unwind(number: int, frame: FrameType | None) -> None:
    """End the process as an exception does, `finally` clauses included, with a shell's status, 128 + `number`."""
    raise SystemExit(128 + number)
