"""The checks of all cells as one document: for programs (health.json) and for people (health.md)."""

from collections.abc import Mapping
from typing import Any

from pipeline.health.checks import CHECKS, Check

Judged = Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]]  # (method, seed) -> check -> figure, passed


def summary(judged: Judged, gate: str) -> dict[str, Any]:
    """The content of health.json: the checks, every cell's figures, and a line for every failure."""
    cells: dict[str, dict[str, Any]] = {}
    for (method, seed), verdicts in judged.items():
        cells.setdefault(method, {})[str(seed)] = verdicts
    return {
        "gate": gate,
        "healthy": not failures(judged),
        "failures": failures(judged),
        "checks": {
            check.name: {
                "asks": check.asks,
                "passes": _passes(check),
                "reason": check.reason,
            }
            for check in CHECKS
        },
        "cells": cells,
    }


def failures(judged: Judged) -> list[str]:
    """One line a failed check."""
    return [
        f"{method} seed {seed}: {check.name}: {verdicts[check.name]['figure']:.4g}"
        f" ({_passes(check)} passes): {check.asks}"
        for (method, seed), verdicts in judged.items()
        for check in CHECKS
        if verdicts[check.name]["passed"] is False
    ]


def lines(verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One checkpoint's checks for a terminal: verdict, name, figure, threshold and what it asks."""
    words = {True: "passes", False: "FAILS", None: "unknown"}
    return [
        f"{words[verdicts[check.name]['passed']]:8} {check.name:15} {_figure(verdicts[check.name], mark=False):>12}"
        f"  ({_passes(check)})  {check.asks}"
        for check in CHECKS
    ]


def markdown(found: Mapping[str, Any], heading: str, images: int) -> str:
    """The figures of every cell in a table, the failed ones marked, and what each check asks and why."""
    cells = [(method, seed) for method, by_seed in found["cells"].items() for seed in by_seed]
    count = len(found["failures"])
    said = f"{count} of {len(cells) * len(found['checks'])} checks failed (**bold**)" if count else "All checks passed"
    lines = [heading, "", f"{said}, on the first {images} test images of every checkpoint. Gate: {found['gate']}.", ""]
    lines += _row("method", "seed", *found["checks"])
    lines += _row("---", "---:", *("---:" for _ in found["checks"]))
    for method, seed in cells:
        verdicts = found["cells"][method][seed]
        lines += _row(method, seed, *(_figure(verdicts[name]) for name in found["checks"]))
    lines += ["", *_row("check", "figure", "passes", "because"), *_row("---", "---", "---", "---")]
    for name, check in found["checks"].items():
        lines += _row(name, check["asks"], check["passes"], check["reason"])
    return "\n".join(lines) + "\n"


def sentence(found: Mapping[str, Any]) -> str:
    """What the comparison says below its tables."""
    failed = found["failures"]
    if not failed:
        return f"Health of the evaluation: all {len(found['checks'])} checks passed on every checkpoint."
    return f"Health of the evaluation: {len(failed)} check(s) failed, see results/health.md: " + "; ".join(
        line.split(" (")[0] for line in failed
    )


def _passes(check: Check) -> str:
    return f"{'at least' if check.least else 'at most'} {check.threshold:g}"


def _figure(verdict: Mapping[str, Any], mark: bool = True) -> str:
    if verdict["figure"] is None:
        return "not measured"
    text = f"{verdict['figure']:.3g}"
    return f"**{text}**" if mark and not verdict["passed"] else text


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
