"""The table of trials, results/search/trials.csv: its columns, and what is chosen from it. Knows nothing of Optuna."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_csv, write_csv

TRIALS = Path("results/search/trials.csv")
BEST = Path("results/search/best.json")
_FIRST = ["number", "state", "method", "seed"]
_MEASURED = ["val_robust", "val_natural", "gradient_evaluations", "selected_epoch", "pruned_at"]
_WORDS = ("state", "method", "schedule")

Row = dict[str, Any]


def write(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Write rows with the parameters `names` as CSV. No clock enters."""
    write_csv(path, rows, [*_FIRST, *names, *_MEASURED])


def read(path: Path) -> list[Row]:
    """The rows of a table with numbers as numbers, and None where a cell is empty."""
    return typed(read_csv(path))


def typed(rows: Sequence[Mapping[str, str]]) -> list[Row]:
    """Rows of text cells with numbers as numbers, and None where a cell is empty."""
    return [{name: _value(name, cell) for name, cell in row.items()} for row in rows]


def parameters(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that say what was tried, in order."""
    return [name for name in rows[0] if name not in (*_FIRST, *_MEASURED)] if rows else []


def complete(rows: Sequence[Row]) -> list[Row]:
    """The trials that trained to their end: the only ones that can be chosen."""
    return [row for row in rows if row["state"] == "complete"]


def best(rows: Sequence[Row]) -> Row:
    """The complete trial of the highest validation robust accuracy; among equals the cheapest, then the first.

    `UserError` where none is complete.
    """
    if not complete(rows):
        states = ", ".join(row["state"] for row in rows)
        raise UserError(f"search: no trial came to its end ({states}); a smaller search.space may avoid divergence")
    return max(complete(rows), key=lambda row: (row["val_robust"], -row["gradient_evaluations"]))


def front(rows: Sequence[Row]) -> list[Row]:
    """The complete trials than which no other is both at least as accurate and as cheap, and better in one; by cost."""
    kept = [row for row in complete(rows) if not any(_dominates(other, row) for other in complete(rows))]
    return sorted(kept, key=lambda row: row["gradient_evaluations"])


def _dominates(one: Row, other: Row) -> bool:
    left, right = ((row["val_robust"], -row["gradient_evaluations"]) for row in (one, other))
    return left != right and left[0] >= right[0] and left[1] >= right[1]


def _value(name: str, cell: str) -> Any:
    if name in _WORDS or cell == "":
        return cell or None
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)
