"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType


class Progress:
    """Counts `total` steps called `label`; use as a context manager and call `step` after each.

    Piped output gets a line at most every `interval` seconds, and always the last one.
    """

    def __init__(self, label: str, total: int, interval: float = 5.0) -> None:
        self.label, self.total, self.interval = label, total, interval
        self.done = 0
        self._spoken = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, leave=True, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def step(self, detail: str = "") -> None:
        """One more step is done; `detail` stands beside the count."""
        self.reach(self.done + 1, detail)

    def reach(self, done: int, detail: str = "") -> None:
        """`done` steps are done, those of an earlier, interrupted process included."""
        news, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.set_postfix_str(detail)
            self._bar.update(news)
            return
        now = time.monotonic()
        if self.done == self.total or now - self._spoken >= self.interval:
            self._spoken = now
            print(f"{self.label}: {self.done}/{self.total} {detail}".rstrip(), flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
