"""The parameters that a search found, brought into params.yaml as a diff that a person reads first."""

import difflib
import sys
from pathlib import Path
from typing import Any

from pipeline import params, presets
from pipeline.errors import UserError
from pipeline.files import read_json, write_text
from pipeline.params import Params
from pipeline.search import table
from pipeline.search.space import assignments, made_with

_SHOWN = 8  # rows of differing keys that an error names


def adopt(number: int | None, yes: bool, target: Path = params.PARAMS_FILE) -> int:
    """Show how `target` changes with trial `number` (default: the chosen one), ask, and write; the exit status.

    Without a terminal to ask on, nothing is written unless `yes`: status 2. `UserError` where there is no table,
    no such trial, or the table is not of the parameters in `target`.
    """
    p = params.load(target)
    row = candidate(p, number)
    before, after = target.read_text(), presets.amend(target, overrides(p, row))
    print(
        f"trial {row['number']}: validation robust accuracy {100 * row['val_robust']:.1f} %, natural"
        f" {100 * row['val_natural']:.1f} %, {row['gradient_evaluations']} gradient evaluations"
    )
    if before == after:
        print(f"{target} has these values already")
        return 0
    name = str(target)
    print("".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, f"{name} (adopted)")))
    print("Values under `train` are those of every method, not of the searched one alone.")
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{target}: nothing is written without a terminal to ask on; read the diff, then give --yes")
    if not yes and input(f"Write {target}? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing written")
        return 1
    write_text(target, after)
    print(f"{target} written; `dvc repro` trains with it")
    return 0


def candidate(p: Params, number: int | None) -> table.Row:
    """The row of trial `number`, or of the one that best.json has chosen, if the table belongs to `p`."""
    rows = trials()
    best = read_json(table.BEST)
    differing = _differing(best["made_with"], made_with(p))
    if differing:
        shown = ", ".join(differing[:_SHOWN]) + (", ..." if len(differing) > _SHOWN else "")
        raise UserError(f"{table.TRIALS}: made with other parameters ({shown}); run `dvc repro search` first")
    wanted = best["chosen"]["number"] if number is None else number
    row = next((row for row in rows if row["number"] == wanted), None)
    if row is None:
        raise UserError(f"--trial {wanted}: no such trial in {table.TRIALS}; there are 0 to {len(rows) - 1}")
    if row["state"] != "complete":
        raise UserError(f"--trial {wanted}: this trial is {row['state']}; only complete ones can be adopted")
    return row


def overrides(p: Params, row: table.Row) -> list[str]:
    """A trial's values as the `KEY=VALUE` of `preset use --set`."""
    return [f"{path}={_text(value)}" for path, value in assignments(p.search, row).items()]


def shown() -> list[str]:
    """The table of trials for people; a star marks those on the front, an arrow the chosen one."""
    rows = trials()
    columns = ["number", "state", *table.parameters(rows), "val_robust", "val_natural", "gradient_evaluations"]
    front, chosen = [{row["number"] for row in table.front(rows)}, table.best(rows)["number"]]
    marks = [("->" if row["number"] == chosen else "  ") + ("*" if row["number"] in front else " ") for row in rows]
    cells = [["", *columns]] + [
        [mark, *("" if row[name] is None else str(row[name]) for name in columns)]
        for mark, row in zip(marks, rows, strict=True)
    ]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
    return [
        *lines,
        "",
        "->: chosen (highest val_robust, then lowest cost); *: on the Pareto front of val_robust and cost",
    ]


def trials() -> list[table.Row]:
    """The rows of the table; `UserError` where there is none."""
    for path in (table.TRIALS, table.BEST):
        if not path.exists():
            raise UserError(f"{path}: no such file; run `dvc repro search` first")
    return table.read(table.TRIALS)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    left, right = dict(presets.flatten(one)), dict(presets.flatten(other))
    return [key for key in {**left, **right} if key not in left or key not in right or left[key] != right[key]]


def _text(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
