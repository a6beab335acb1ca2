"""On the driver's node: an actor that keeps what cells report while they run, so that a lost node takes little along.

States to go on from are kept in `.work/cluster/CELL/`, logs in `.work/logs/CELL.log`. Nothing but files is
relied on, so that an actor that is started again, or the one of the next driver, goes on with them.
"""

import os
from pathlib import Path

PART = 32 * 2**20  # bytes of a file in one message


class Keeper:
    """Files of cells, in the folders `kept` and `logs` (absolute paths)."""

    def __init__(self, kept: str, logs: str) -> None:
        self.folder, self.logs = Path(kept), Path(logs)
        self.nodes: dict[str, str] = {}

    def begin(self, cell: str, node: str) -> None:
        """`cell` starts on `node`, with a log of its own."""
        self.nodes[cell] = node
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.logs / f"{cell}.log").write_bytes(b"")

    def node(self, cell: str) -> str | None:
        """Where `cell` started last; None where it has not, or this actor was started again since."""
        return self.nodes.get(cell)

    def log(self, cell: str, text: bytes) -> None:
        """More of what `cell` says."""
        with open(self.logs / f"{cell}.log", "ab") as log:
            log.write(text)

    def store(self, cell: str, name: str, attempt: str, part: bytes, first: bool, last: bool) -> None:
        """A part of a file of `cell`; with the last one the file takes the place of its predecessor."""
        path = self.folder / cell / name
        temporary = path.with_name(f".{path.name}.{attempt}.tmp")
        if first:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb" if first else "ab") as file:
            file.write(part)
        if last:
            os.replace(temporary, path)

    def names(self, cell: str) -> list[str]:
        """The files kept for `cell`, relative to its folder."""
        folder = self.folder / cell
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
        return sorted(str(path.relative_to(folder)) for path in files)

    def part(self, cell: str, name: str, offset: int) -> bytes:
        """A part of a kept file from `offset` on; empty at its end."""
        with open(self.folder / cell / name, "rb") as file:
            file.seek(offset)
            return file.read(PART)
