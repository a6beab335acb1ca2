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
        print("verify: same kind of machine as recorded, so every output must be equal to the byte")
        problems = unequal_outputs(parse_text(_committed(LOCK), "committed dvc.lock"), read_yaml(root / LOCK))
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


def unequal_outputs(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Outputs of two dvc.lock documents that differ, a line each."""
    left, right = _outputs(expected), _outputs(found)
    return [
        f"{path}: {right.get(path, 'missing')}, recorded {left.get(path, 'nothing')}"
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path)
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


def _outputs(lock: dict[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}


def _means(comparison: dict[str, Any]) -> dict[tuple[str, str], float]:
    methods = comparison["methods"].items()
    return {(method, metric): s["mean"] for method, metrics in methods for metric, s in metrics.items()}


def _committed(path: Path) -> str:
    done = subprocess.run(["git", "show", f"HEAD:{path}"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{path}: not in the last commit, so there is nothing to verify against")
    return done.stdout
