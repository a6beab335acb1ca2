"""Any chosen runs in the tables of the comparison; what cannot be compared is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.comparison import chosen_runs, tables
from pipeline.comparison.chosen_runs import Chosen
from pipeline.comparison.compare import Results, compare
from pipeline.errors import UserError
from pipeline.verdicts import NATURAL, Verdicts

if TYPE_CHECKING:
    from pipeline.params import Params

BY_ATTACK = ("broken", "margin", "norm", "gradient_evaluations", "forward_passes")
Arranged = Mapping[str, Mapping[int, Chosen]]  # label -> seed -> run


def workspace(p: "Params") -> str:
    """The workspace's own comparison as `dvc repro` wrote it, and how long the trainings took, on what."""
    written = Path("results/comparison.md")
    if not written.exists():
        raise UserError(f"{written}: not there yet; dvc repro makes it")
    runs = {m: {s: chosen_runs.at(Path("runs") / m / f"seed-{s}") for s in p.matrix.seeds} for m in p.matrix.methods}
    return "\n".join([written.read_text(), *circumstances(runs)])


def chosen(p: "Params", patterns: Sequence[str], reference: str | None, allow_mixed: bool) -> str:
    """The tables of the comparison for the runs that `patterns` name (see `chosen_runs.choose`).

    `reference`: the label of the row that others are paired with; by default the method that
    params.yaml names, or the first row. `UserError` where there is nothing to compare, and,
    without `allow_mixed`, where the runs do not share data, threat, test examples and attacks.
    """
    runs = chosen_runs.choose(patterns)
    arranged, differing = arrange(runs), "; ".join(mixed(runs))
    if differing and not allow_mixed:
        raise UserError(f"--runs: not comparable, give --allow-mixed to do it all the same: {differing}")
    if reference is not None and reference not in arranged:
        raise UserError(f"--reference {reference}: not one of the rows: {', '.join(arranged)}")
    default = p.comparison.reference if p.comparison.reference in arranged else next(iter(arranged))
    settings = p.comparison
    data = ", ".join(sorted({run.data for run in runs}))
    content = compare(
        results(arranged), data, reference or default, settings.confidence, settings.resamples, settings.seed, None
    )
    heading = f"# {len(runs)} chosen runs" + (
        f"\n\nMIXED, so differences may have other causes: {differing}" * bool(differing)
    )
    return "\n".join([tables.markdown(content, heading), *legend(arranged), "", *circumstances(arranged)])


def arrange(runs: Sequence[Chosen]) -> dict[str, dict[int, Chosen]]:
    """The runs by label and seed; a label is the method, with a part of the content key where a method is there twice.

    `UserError` where there is nothing to compare, or one run comes with two verdict tables.
    """
    groups: dict[str, dict[int, Chosen]] = {}
    for run in runs:
        twin = groups.setdefault(run.group, {}).setdefault(run.seed, run)
        if twin is not run:
            raise UserError(f"--runs: {twin.source} and {run.source} are the same run with different verdicts")
    methods = [_method(group) for group in groups.values()]
    if len(groups) == 1:
        raise UserError(
            f"--runs: nothing to compare: {len(runs)} run(s), all of {methods[0]} with the same parameters and code"
        )
    return {
        method if methods.count(method) == 1 else f"{method} {key[:8]}": dict(sorted(group.items()))
        for method, (key, group) in zip(methods, groups.items(), strict=True)
    }


def mixed(runs: Sequence[Chosen]) -> list[str]:
    """What differs between runs that should share it, a clause each: `pgd-20 steps: 20 (A, B), 10 (C)`."""
    settings = [run.settings() for run in runs]
    clauses: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for facts in settings for name in facts):
        values: dict[str, list[str]] = {}
        for run, facts in zip(runs, settings, strict=True):
            attack = name.split(" ")[0]
            if name in facts or attack in run.result.verdicts.attacks:  # an attack that is missing differs once
                values.setdefault(str(facts.get(name, "none")), []).append(run.source)
        if len(values) > 1:
            clauses.setdefault(", ".join(f"{v} ({_few(sources)})" for v, sources in values.items()), []).append(name)
    return [f"{_few(names)}: {values}" for values, names in clauses.items()]


def results(arranged: Arranged) -> Results:
    """Their results, with the attacks that all of them have."""
    tables = [run.result.verdicts for group in arranged.values() for run in group.values()]
    common = [name for name in tables[0].attacks if all(name in table.attacks for table in tables)]
    if NATURAL not in common or len(common) == 1:
        raise UserError("--runs: no attack is common to all of these runs")
    return {
        label: {
            seed: replace(run.result, verdicts=restricted(run.result.verdicts, common)) for seed, run in group.items()
        }
        for label, group in arranged.items()
    }


def restricted(table: Verdicts, attacks: Sequence[str]) -> Verdicts:
    """The table of some of its attacks, in the order given."""
    rows = [table.attacks.index(name) for name in attacks]
    parts = {name: np.asarray(getattr(table, name))[rows] for name in BY_ATTACK}
    return replace(table, attacks=list(attacks), settings=[table.settings[row] for row in rows], **parts)


def circumstances(arranged: Arranged) -> list[str]:
    """Seconds and devices of the trainings, a line a method; what no record holds is said to be unknown."""
    lines = ["Training, from the record (no table holds it, because it differs from machine to machine):"]
    width = max(map(len, arranged))
    for label, group in arranged.items():
        facts = [run.facts for run in group.values()]
        seconds = [fact["seconds"] for fact in facts if "seconds" in fact]
        devices = sorted({fact["device"] for fact in facts if "device" in fact})
        known = (
            f"{np.mean(seconds):.1f} s a run on {', '.join(devices) or 'unknown device'}" if seconds else "not known"
        )
        missing = len(facts) - len(seconds)
        gap = f"; {missing} of {len(facts)} run(s) not trained here or not recorded" if missing else ""
        lines.append(f"  {label:{width}}  {known}{gap}")
    return lines


def legend(arranged: Arranged) -> list[str]:
    """Which runs are in which row, a line a row."""
    return [
        f"- {label}: " + ", ".join(f"seed {seed} {run.source}" for seed, run in group.items())
        for label, group in arranged.items()
    ]


def _method(group: Mapping[int, Chosen]) -> str:
    return next(iter(group.values())).description["method"]


def _few(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
