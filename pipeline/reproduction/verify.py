"""Hold a reproduction against a recorded one: exactly on the recorded machine, within tolerance elsewhere.

Three comparisons: the files on disk with the workspace's own dvc.lock, so that nothing was
edited since it was made; that lock with the recorded one; and the accuracies with the recorded
ones. Elsewhere the second is of commands, parameters and data alone, and the third allows what
the recorded spread explains (pipeline/reproduction/tolerance.py).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import digest, read_json, write_text
from pipeline.reproduction import lock
from pipeline.reproduction.findings import DIFFERS, MISSING, WITHIN, Compared, Findings, Row
from pipeline.reproduction.lock import LOCK, PARAMS, STAGES, Facts
from pipeline.reproduction.receipt import COMPARISON, RECEIPT, Record, mapping
from pipeline.reproduction.tolerance import MULTIPLE, summaries, tolerances
from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

DATA = "data/"  # what must be equal on every machine
KINDS = ("stage", "command", "parameter", "output", "dependency")  # of facts, in the order of the table


def verify(
    p: "Params",
    root: Path,
    against: str = "HEAD",
    remake: Callable[[], int] | None = None,
    markdown: Path | None = None,
) -> int:
    """Compare the workspace at `root` with a revision and print the findings; 0 if it holds, else 1.

    `remake` runs first where given, and returns an exit status. `markdown` also gets the findings.
    """
    if remake is None and not (root / LOCK).exists():
        raise UserError(f"{LOCK}: no such file; nothing was made here yet: run `dvc repro` first")
    recorded = Record.at(root, against)
    if remake is not None and remake():
        print("verify: FAILED: the run itself failed, nothing was compared")
        return 1
    found = examine(p, root, recorded)
    print(found.text())
    if markdown:
        write_text(markdown, found.markdown())
    return int(bool(found.failures))


def pull() -> int:
    """`dvc repro --pull`: fetch from the remote what it has, run the rest; the exit status."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        return subprocess.run(["dvc", "repro", "--pull"], env=os.environ | {"PATH": path}).returncode
    except FileNotFoundError:
        raise UserError("dvc: not found; install the project first (`make repro` does)") from None


def examine(p: "Params", root: Path, recorded: Record) -> Findings:
    """Everything that `verify` compares."""
    reasons = recorded.unlike(p)
    exact = not reasons
    own = mapping((root / LOCK).read_text(), str(LOCK))
    if "stages" not in own:
        raise UserError(f"{LOCK}: has no key 'stages'")
    commands = lock.defined(read_yaml(root / STAGES), read_yaml(root / PARAMS))
    facts = lock.locked(own, commands)
    floor = 100 * p.verification.accuracy_tolerance
    if exact:
        rule = "same kind of machine as recorded, so dvc.lock and every output must be equal to the byte"
        held, its = facts, recorded.facts
    else:
        rule = (
            "another kind of machine: commands, parameters and data must be equal, mean accuracies within"
            f" {MULTIPLE:g} standard deviations of their difference as recorded, or within {floor:g} points if those"
            " are less"
        )
        held, its = _portable(facts), _portable(recorded.facts)
        reasons += other_code(recorded.facts, facts)
    if "libraries" not in recorded.receipt:
        reasons.append(f"{RECEIPT} there names no library versions; `verify --record` adds them")
    return Findings(
        recorded.name,
        rule,
        reasons,
        [
            _receipt(recorded),
            on_disk(root, facts, lock.measured(root, own, commands)),
            Compared(f"{LOCK} with the recorded one", len(held.keys() | its.keys()), unequal(its, held)),
            accuracies(root, recorded.comparison, None if exact else floor),
        ],
    )


def on_disk(root: Path, facts: Facts, measured: Facts) -> Compared:
    """Parameters, code, data and outputs as they are now, with those that dvc.lock says were used and made."""
    digests = lock.Digests(root)

    def inside(name: str, before: Any) -> str:
        changed = digests.changed_in(name, str(before)) if str(before).endswith(".dir") else []
        return f" ({', '.join(changed)})" if changed else ""

    return Compared(f"files on disk with {LOCK}", len(facts.keys() | measured.keys()), unequal(facts, measured, inside))


def unequal(recorded: Facts, found: Facts, detail: Callable[[str, Any], str] = lambda name, recorded: "") -> list[Row]:
    """A row for every fact that differs; those of several stages in one, and one for a stage that is missing."""
    absent = {stage for stage, kind, _ in recorded.keys() ^ found.keys() if kind == "stage"}
    groups: dict[str, tuple[str, str, Any, Any, list[str]]] = {}
    for key in sorted(recorded.keys() | found.keys(), key=lambda key: (KINDS.index(key[1]), key)):
        stage, kind, name = key
        before, now = recorded.get(key), found.get(key)
        if before == now or (stage in absent and kind != "stage"):
            continue
        label = stage if kind == "command" else name
        groups.setdefault(digest([kind, label, before, now]), (kind, label, before, now, []))[-1].append(stage)
    return [
        Row(
            f"{kind} {name}{detail(name, before)}{_of(stages) if kind not in ('stage', 'command') else ''}",
            _shown(before),
            _shown(now),
            MISSING if now is None else DIFFERS,
        )
        for kind, name, before, now, stages in groups.values()
    ]


def accuracies(root: Path, recorded: Mapping[str, Any], floor: float | None) -> Compared:
    """The mean accuracies with the recorded ones; without a `floor` every run's value too, and to the digit."""
    title = "accuracies with the recorded ones"
    try:
        found = _values(read_json(root / COMPARISON), floor is None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        row = Row(str(COMPARISON), "a comparison", "missing, or not the JSON of one", MISSING)
        return Compared(title, 1, [row])
    expected = _values(recorded, floor is None)
    allowed = {} if floor is None else tolerances(recorded, floor)
    names = [*expected, *(name for name in found if name not in expected)]
    rows = [_accuracy(name, expected.get(name), found.get(name), allowed.get(name[:2], 0.0)) for name in names]
    return Compared(title, len(names), [row for row in rows if row is not None])


def other_code(recorded: Facts, found: Facts) -> list[str]:
    """Which code is not the recorded one, in one line: a reason for other bits, not by itself a failure."""
    code = {name for (_, kind, name) in recorded if kind == "dependency" and name.startswith(("pipeline", "stages"))}
    keys = [key for key in recorded.keys() & found.keys() if key[2] in code and recorded[key] != found[key]]
    names = sorted({name for _, _, name in keys})
    return [f"the code differs from the recorded one: {', '.join(names)}"] if names else []


def _accuracy(name: tuple[str, ...], recorded: float | None, found: float | None, allowed: float) -> Row | None:
    what = " ".join(name)
    if recorded is None or found is None:
        return Row(what, _shown(recorded), _shown(found), MISSING if found is None else DIFFERS)
    if recorded == found:
        return None
    # Not `>`: a NaN lies within no tolerance.
    verdict = WITHIN if abs(found - recorded) <= allowed else DIFFERS
    return Row(what, f"{recorded:.4g}", f"{found:.4g}", verdict, f"{found - recorded:+.4g}", f"{allowed:.3g}")


def _values(comparison: Mapping[str, Any], with_runs: bool) -> dict[tuple[str, ...], float]:
    values: dict[tuple[str, ...], float] = {}
    for cell, summary in summaries(comparison).items():
        values[cell] = summary["mean"]
        if with_runs:
            values |= {(*cell, f"seed {seed}"): value for seed, value in summary["runs"].items()}
    return values


def _receipt(recorded: Record) -> Compared:
    """Whether the receipt was written for the lock beside it: otherwise its machine did not make that lock."""
    named = recorded.receipt["dvc.lock"]
    what = f"SHA-256 of {LOCK} (record it again with `verify --record`)"
    rows = [] if named == recorded.lock_sha256 else [Row(what, _shown(recorded.lock_sha256), _shown(named))]
    return Compared(f"{RECEIPT} with the {LOCK} recorded beside it", 1, rows)


def _portable(facts: Facts) -> Facts:
    """The facts that must be equal on every machine: stages, commands, parameters, data."""
    everywhere = ("stage", "command", "parameter")
    return {key: value for key, value in facts.items() if key[1] in everywhere or key[2].startswith(DATA)}


def _of(stages: list[str]) -> str:
    return f", {stages[0]}" + (f" and {len(stages) - 1} more" if len(stages) > 1 else "")


def _shown(value: Any) -> str:
    """A value for a table: hashes by their first 12 digits, `missing` for None."""
    if value is None:
        return "missing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if re.fullmatch(r"([0-9a-f]{32}){1,2}(\.dir)?", text) else text
