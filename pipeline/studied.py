"""Studies as the files tell them: tables with a row a trial, in the form a tracker wants; knows nothing of any tracker.

The key of a study is the hash of its whole table, and of a trial that and its row: the same numbers are the
same study whatever moved in the code, and dvc.lock, which DVC writes after the table, cannot change a key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import digest, read_csv
from pipeline.reproduction import entries
from pipeline.tracked import spread
from pipeline.verdicts import NATURAL, WORST_CASE


@dataclass(frozen=True)
class Plan:
    """Where a study's table is and what its columns are.

    `points`: the columns that say what was tried; `fixed`: what every trial shares; `settings`: the
    section of params.yaml that the study is set by; `rank`: the column whose mean over seeds chooses
    among points, or "" where nothing is chosen.
    """

    name: str
    stage: str
    table: Path
    points: tuple[str, ...]
    fixed: dict[str, str]
    settings: str
    rank: str = ""


PLANS = (
    Plan(
        "lambda study",
        "ablation",
        Path("results/ablation/lambda.csv"),
        ("lam", "seed"),
        {"method": "adt_exp"},
        "ablation",
        "val_robust",
    ),
    Plan(
        "degeneracy",
        "degeneracy",
        Path("results/degeneracy/accuracy.csv"),
        ("method", "seed"),
        {},
        "degeneracy",
    ),
)


@dataclass(frozen=True)
class Trial:
    """One row of a study: its name, content key, parameters and measured values."""

    name: str
    key: str
    params: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Study:
    """One state of a study's table."""

    plan: Plan
    rows: list[dict[str, str]]

    @property
    def key(self) -> str:
        """Content key: the hash of the plan's name and of the whole table."""
        return digest([self.plan.name, self.rows])

    def trials(self) -> Iterator[Trial]:
        """Every row, in the table's order."""
        for row in self.rows:
            point = {name: row[name] for name in self.plan.points}
            told = " ".join(value if name == "method" else f"{name} {value}" for name, value in point.items())
            params = self.plan.fixed | point
            yield Trial(f"{self.plan.name}: {told}", digest([self.key, row]), params, _metrics(row, self.plan.points))

    def metrics(self) -> dict[str, float]:
        """For the parent: means and deviations over the chosen point's seeds, or over all rows that have a value."""
        chosen = self._best()
        of_point = [t.metrics for t in self.trials() if all(t.params[name] == value for name, value in chosen.items())]
        if chosen:
            return spread(of_point)
        common = {name for metrics in of_point for name in metrics if name.startswith("agreement")}
        return {
            name: value
            for wanted in sorted(common)
            for name, value in spread([{wanted: m[wanted]} for m in of_point if wanted in m]).items()
        }

    def params(self) -> dict[str, str]:
        """What the study shares, the point it chose, and its settings where dvc.lock knows them for this table."""
        entry = self._entry()
        settings = entry.params.get(self.plan.settings, {}) if entry else {}
        return self.plan.fixed | self._best() | {name: str(value) for name, value in settings.items()}

    def tags(self) -> dict[str, str]:
        """DVC's stage, the MD5 of its outputs and the hash of what made them, once dvc.lock has this table."""
        entry = self._entry()
        if entry is None:
            return {}
        outputs = {f"dvc.md5.{path}": md5 for path, md5 in entry.outputs.items()}
        return {"dvc.stage": entry.stage, "dvc.made": entry.made} | outputs

    def _entry(self) -> entries.Entry | None:
        entry = entries.entry(self.plan.stage)
        return entry if entry and entry.describes(self.plan.table) else None

    def _best(self) -> dict[str, str]:
        """The point with the highest mean of `rank` over seeds (the first among equals), without its seed."""
        if not self.plan.rank:
            return {}
        free = [name for name in self.plan.points if name != "seed"]
        values: dict[tuple[str, ...], list[float]] = {}
        for row in self.rows:
            values.setdefault(tuple(row[name] for name in free), []).append(float(row[self.plan.rank]))
        best = max(values, key=lambda point: sum(values[point]) / len(values[point]))
        return dict(zip(free, best, strict=True))


def studies() -> Iterator[Study]:
    """Every study whose table is there and has rows."""
    for plan in PLANS:
        rows = read_csv(plan.table) if plan.table.exists() else []
        if rows:
            yield Study(plan, rows)


def _metrics(row: dict[str, str], points: tuple[str, ...]) -> dict[str, float]:
    """A row's values under the names that training runs use: accuracies as `test_ATTACK` in percent."""
    columns = list(row)
    accuracies = columns[columns.index(NATURAL) : columns.index(WORST_CASE) + 1]
    values = {name: float(value) for name, value in row.items() if name not in points and value != ""}
    return {
        f"test_{name}" if name in accuracies else name: round(100 * value, 4) if name in accuracies else value
        for name, value in values.items()
    }
