"""Hold a reproduction against the committed one: exactly on the recorded machine, within tolerance elsewhere."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import machine
from pipeline.errors import UserError
from pipeline.files import digest_file, read_json, write_json
from pipeline.yaml_files import parse_text, read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

LOCK = Path("dvc.lock")
RECEIPT = Path("receipt.json")
COMPARISON = Path("results/comparison.json")


def record(p: "Params") -> None:
    """Write receipt.json: the SHA-256 of dvc.lock and the fingerprint of the machine that made it."""
    if not LOCK.exists():
        raise UserError(f"{LOCK}: nothing to record yet; run `dvc repro` first")
    write_json(RECEIPT, {"dvc.lock": digest_file(LOCK), "machine": machine.fingerprint(p.runtime)})


def verify(p: "Params", root: Path) -> int:
    """Compare with the committed files; prints which comparison was made. Returns 0 if it holds, else 1."""
    receipt = parse_text(_committed(RECEIPT), str(RECEIPT))
    here = machine.fingerprint(p.runtime)
    if here == receipt["machine"]:
        print("verify: same kind of machine as recorded, so dvc.lock and every output must be equal to the byte")
        problems = unequal_entries(parse_text(_committed(LOCK), "committed dvc.lock"), read_yaml(root / LOCK))
    else:
        for name in sorted(here.keys() | receipt["machine"].keys()):
            if here.get(name) != receipt["machine"].get(name):
                print(f"verify: {name} is {here.get(name)!r}, recorded was {receipt['machine'].get(name)!r}")
        tolerance = p.verification.accuracy_tolerance
        print(f"verify: another kind of machine, so mean accuracies must agree within {100 * tolerance:g} points")
        committed = parse_text(_committed(COMPARISON), "committed comparison")
        problems = distant_accuracies(committed, read_json(root / COMPARISON), 100 * tolerance)
    for problem in problems:
        print(f"verify: {problem}")
    print("verify: FAILED" if problems else "verify: reproduced")
    return 1 if problems else 0


def unequal_entries(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Commands, parameters, dependencies and outputs of two dvc.lock documents that differ, a line each."""
    left, right = _entries(expected), _entries(found)
    return [
        f"{name}: {right.get(name, 'missing')}, recorded {left.get(name, 'nothing')}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]


def distant_accuracies(expected: dict[str, Any], found: dict[str, Any], tolerance: float) -> list[str]:
    """Mean accuracies of two comparisons further apart than `tolerance` points, or present in one only."""
    left, right = _means(expected), _means(found)
    return [
        f"{method} {metric}: {right.get((method, metric))}, recorded {left.get((method, metric))}"
        for method, metric in sorted(left.keys() | right.keys())
        if (method, metric) not in left
        or (method, metric) not in right
        or abs(left[method, metric] - right[method, metric]) > tolerance
    ]


def _entries(lock: dict[str, Any]) -> dict[str, str]:
    """Every fact of a lock under a name: `stage cmd`, `stage params`, `stage deps PATH`, `stage outs PATH`."""
    entries = {}
    for name, stage in lock["stages"].items():
        entries[f"{name} cmd"] = stage["cmd"]
        entries[f"{name} params"] = str(stage.get("params"))
        for kind in ("deps", "outs"):
            entries |= {f"{name} {kind} {item['path']}": item["md5"] for item in stage.get(kind, [])}
    return entries


def _means(comparison: dict[str, Any]) -> dict[tuple[str, str], float]:
    methods = comparison["methods"].items()
    return {(method, metric): s["mean"] for method, metrics in methods for metric, s in metrics.items()}


def _committed(path: Path) -> str:
    done = subprocess.run(["git", "show", f"HEAD:{path}"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{path}: not in the last commit, so there is nothing to verify against")
    return done.stdout
