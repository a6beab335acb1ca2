"""Studies as the files tell them: tables with a row a trial, in the form a tracker wants; knows nothing of any tracker.

The key of a study is the hash of its whole table, and of a trial that and its row: the same numbers are the
same study whatever moved in the code, and dvc.lock, which DVC writes after the table, cannot change a key.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pipeline.files import digest, read_csv
from pipeline.reproduction import entries
from pipeline.search import table
from pipeline.tracked import spread
from pipeline.verdicts import NATURAL, WORST_CASE

Rows = list[dict[str, str]]


def highest_mean(rows: Rows) -> dict[str, str]:
    """The (method, lam, tau) with the highest mean validation robust accuracy over seeds; {} where no row has a lam.

    The first among equals. Rows without lambda are the reference, which is not chosen.
    """
    values: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row["lam"]:
            values.setdefault(tuple(row[name] for name in _POINT), []).append(float(row["val_robust"]))
    if not values:
        return {}
    return dict(zip(_POINT, max(values, key=lambda point: fmean(values[point])), strict=True))


def chosen_trial(rows: Rows) -> dict[str, str]:
    """The trial that the search chose; {} where none came to its end."""
    typed = table.typed(rows)
    return {"number": str(table.best(typed)["number"])} if table.complete(typed) else {}


_POINT = ("method", "lam", "tau")


@dataclass(frozen=True)
class Plan:
    """Where a study's table is and what its columns are.

    `measured`: the first column that was measured; those before it say what was tried. `named`: those of them that
    a trial is called by. `settings`: the section of params.yaml that the study is set by. `choose`: from the rows to
    the cells that the chosen ones have in common, or None where nothing is chosen.
    """

    name: str
    stage: str
    table: Path
    measured: str
    named: tuple[str, ...]
    settings: str
    choose: Callable[[Rows], dict[str, str]] | None = None


PLANS = (
    Plan(
        "lambda study",
        "ablation",
        Path("results/ablation/lambda.csv"),
        "val_robust",
        (*_POINT, "seed"),
        "ablation",
        highest_mean,
    ),
    Plan(
        "degeneracy",
        "degeneracy",
        Path("results/degeneracy/accuracy.csv"),
        NATURAL,
        ("method", "seed"),
        "degeneracy",
    ),
    Plan("search", "search", table.TRIALS, "val_robust", ("number",), "search", chosen_trial),
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
    rows: Rows

    @property
    def key(self) -> str:
        """Content key: the hash of the plan's name and of the whole table."""
        return digest([self.plan.name, self.rows])

    def trials(self) -> Iterator[Trial]:
        """Every row, in the table's order."""
        for row in self.rows:
            tried = list(row)[: list(row).index(self.plan.measured)]
            params = {name: row[name] for name in tried if row[name] != ""}
            told = " ".join(_told(name, params[name]) for name in self.plan.named if name in params)
            yield Trial(f"{self.plan.name}: {told}", digest([self.key, row]), params, _metrics(row, tried))

    def metrics(self) -> dict[str, float]:
        """For the parent: means and deviations over the chosen trials, or over all that agree on anything."""
        chosen = self._chosen()
        if chosen:
            return spread([trial.metrics for trial in chosen])
        every = [trial.metrics for trial in self.trials()]
        common = {name for metrics in every for name in metrics if name.startswith("agreement")}
        return {
            name: value
            for wanted in sorted(common)
            for name, value in spread([{wanted: m[wanted]} for m in every if wanted in m]).items()
        }

    def params(self) -> dict[str, str]:
        """What the chosen trials share, and the study's settings where dvc.lock knows them for this table."""
        entry = self._entry()
        settings = entry.params.get(self.plan.settings, {}) if entry else {}
        # A chosen value goes before a setting of that name: it is logged first, and MLflow changes no parameter.
        return {name: str(value) for name, value in settings.items()} | _shared([t.params for t in self._chosen()])

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

    def _chosen(self) -> list[Trial]:
        """The trials that have the chosen cells; none where the study chooses nothing."""
        cells = self.plan.choose(self.rows) if self.plan.choose else {}
        pairs = zip(self.rows, self.trials(), strict=True)
        return [trial for row, trial in pairs if cells and cells.items() <= row.items()]


def studies() -> Iterator[Study]:
    """Every study whose table is there and has rows."""
    for plan in PLANS:
        rows = read_csv(plan.table) if plan.table.exists() else []
        if rows:
            yield Study(plan, rows)


def _told(name: str, value: str) -> str:
    return {"method": value, "number": f"trial {value}"}.get(name, f"{name} {value}")


def _shared(tables: list[dict[str, str]]) -> dict[str, str]:
    """The entries that all tables have in common."""
    first, *others = tables or [{}]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _metrics(row: dict[str, str], tried: list[str]) -> dict[str, float]:
    """A row's values under the names that training runs use: accuracies as `test_ATTACK` in percent."""
    columns = list(row)
    judged = NATURAL in columns
    accuracies = columns[columns.index(NATURAL) : columns.index(WORST_CASE) + 1] if judged else []
    values = {name: float(value) for name, value in row.items() if name not in tried and value != ""}
    return {
        f"test_{name}" if name in accuracies else name: round(100 * value, 4) if name in accuracies else value
        for name, value in values.items()
    }
