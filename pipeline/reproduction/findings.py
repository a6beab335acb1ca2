"""What a verification found: what was compared, what differs, and both as text and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

WITHIN = "within"
DIFFERS = "DIFFERS"
MISSING = "MISSING"
MOST = 40  # lines shown of one comparison
COLUMNS = ["what", "recorded", "found", "difference", "tolerance", "verdict"]


@dataclass(frozen=True)
class Row:
    """One thing that is not equal; `difference` and `tolerance` in points where it is an accuracy."""

    what: str
    recorded: str
    found: str
    verdict: str = DIFFERS
    difference: str = ""
    tolerance: str = "none"


@dataclass(frozen=True)
class Compared:
    """One comparison: its title, how many things were held against each other, and those that are not equal."""

    title: str
    count: int
    rows: Sequence[Row] = ()

    @property
    def failures(self) -> list[Row]:
        """The differences that no tolerance covers."""
        return [row for row in self.rows if row.verdict != WITHIN]

    def shown(self) -> list[Row]:
        """The rows to print: failures first, at most `MOST`, the rest counted."""
        rows = self.failures + [row for row in self.rows if row.verdict == WITHIN]
        left = len(rows) - MOST
        return rows if left <= 0 else [*rows[:MOST], Row(f"... and {left} more", "", "", "", "", "")]


@dataclass(frozen=True)
class Findings:
    """A whole verification: what it was held against, how strictly and why, and every comparison."""

    against: str
    rule: str
    reasons: Sequence[str] = ()
    parts: Sequence[Compared] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """Everything that fails."""
        return [row for part in self.parts for row in part.failures]

    @property
    def verdict(self) -> str:
        """The last line: reproduced, or FAILED and how often."""
        count = len(self.failures)
        return f"FAILED: {count} difference{'s' if count > 1 else ''}" if count else "reproduced"

    def text(self) -> str:
        """For a terminal: what was done, a table of counts, a table of what differs, the verdict."""
        said = [f"verify: against {self.against}", *(f"verify: {line}" for line in [*self.reasons, self.rule])]
        tables = ["", *_aligned(self._counts())]
        for part in self.parts:
            if part.rows:
                tables += ["", f"{part.title}:", *_aligned([COLUMNS, *map(_cells, part.shown())])]
        return "\n".join([*said, *tables, "", f"verify: {self.verdict}"])

    def markdown(self) -> str:
        """For a comment on a change, or a CI summary."""
        lines = [f"## Reproduction: {self.verdict}", "", f"Against {self.against}: {self.rule}.", ""]
        if self.reasons:
            lines += [*(f"- {reason}" for reason in self.reasons), ""]
        lines += _markdown(self._counts())
        for part in self.parts:
            if part.rows:
                title = f"{part.title}: {len(part.failures)} fail, {len(part.rows)} differ"
                table = _markdown([COLUMNS, *map(_cells, part.shown())])
                lines += ["", f"<details><summary>{title}</summary>", "", *table, "", "</details>"]
        return "\n".join(lines) + "\n"

    def _counts(self) -> list[list[str]]:
        counts = [[p.title, str(p.count), str(len(p.rows)), str(len(p.failures))] for p in self.parts]
        return [["compared", "count", "differ", "fail"], *counts]


def _cells(row: Row) -> list[str]:
    return [row.what, row.recorded, row.found, row.difference, row.tolerance, row.verdict]


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return [f"  {line.rstrip()}" for line in lines]


def _markdown(table: list[list[str]]) -> list[str]:
    header, *body = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in table]
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *body]]
