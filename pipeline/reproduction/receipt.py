"""What a commit says was made, and by which machine: receipt.json beside dvc.lock and the comparison."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import machine
from pipeline.errors import UserError
from pipeline.files import digest_file, write_json
from pipeline.parallel import trainers
from pipeline.reproduction import lock, revisions
from pipeline.reproduction.lock import LOCK, PARAMS, STAGES, Facts
from pipeline.yaml_files import parse_text

if TYPE_CHECKING:
    from pipeline.params import Params

RECEIPT = Path("receipt.json")
COMPARISON = Path("results/comparison.json")
NEEDED = (
    (RECEIPT, "machine"),
    (RECEIPT, "dvc.lock"),
    (LOCK, "stages"),
    (STAGES, "stages"),
    (COMPARISON, "methods"),
    (COMPARISON, "test_examples"),
)
# Beside torch, NumPy and Python, which the machine's fingerprint has: what computes or draws outputs.
LIBRARIES = (
    "jinja2",
    "matplotlib",
    "numpy",
    "optuna",
    "pillow",
    "pyautoattack",
    "safetensors",
    "scikit-learn",
    "scipy",
)


def libraries() -> dict[str, str]:
    """The installed version of each of `LIBRARIES`."""
    return {name: _version(name) for name in LIBRARIES}


def record(p: "Params") -> None:
    """Write receipt.json: the SHA-256 of dvc.lock, the machine that made it, and the libraries it was made with."""
    if not LOCK.exists():
        raise UserError(f"{LOCK}: nothing to record yet; run `dvc repro` first")
    made_by = {"machine": kind(p), "libraries": libraries()}
    write_json(RECEIPT, {"dvc.lock": digest_file(LOCK), **made_by})


def kind(p: "Params") -> dict[str, str]:
    """The machine's fingerprint, and how many processes share a training here, if it is cut into several parts."""
    count = trainers(p.train, machine.resolve(p.runtime.device), p.runtime.threads)
    return machine.fingerprint(p.runtime) | ({"processes": str(count)} if p.train.devices > 1 else {})


@dataclass(frozen=True)
class Record:
    """What a commit says was made: its receipt, its dvc.lock (with its hash and stages) and its comparison."""

    name: str
    receipt: Mapping[str, Any]
    lock_sha256: str
    facts: Facts
    comparison: Mapping[str, Any]

    @classmethod
    def at(cls, root: Path, revision: str) -> "Record":
        """Read a revision; `UserError` where it, its receipt, its dvc.lock or its comparison is not there."""
        commit = revisions.commit_of(root, revision)
        texts = {path: revisions.content(root, commit, path) for path in (RECEIPT, LOCK, COMPARISON, STAGES, PARAMS)}
        parsed = {path: mapping(text, f"{path} at {revision}") for path, text in texts.items()}
        for path, key in NEEDED:
            if key not in parsed[path]:
                raise UserError(f"{path} at {revision}: has no key {key!r}")
        facts = lock.locked(parsed[LOCK], lock.defined(parsed[STAGES], parsed[PARAMS]))
        name = revision if commit.startswith(revision) else f"{revision} ({commit[:7]})"
        return cls(name, parsed[RECEIPT], hashlib.sha256(texts[LOCK].encode()).hexdigest(), facts, parsed[COMPARISON])

    def unlike(self, p: "Params") -> list[str]:
        """How this machine and its libraries differ from the recorded ones, a line each."""
        here, there = kind(p), self.receipt["machine"]
        pairs = [(name, here.get(name), there.get(name)) for name in sorted(here.keys() | there.keys())]
        installed = self.receipt.get("libraries", {})
        pairs += [(name, _version(name), recorded) for name, recorded in installed.items() if name not in here]
        return [f"{name} is {mine!r}, recorded was {its!r}" for name, mine, its in pairs if mine != its]


def mapping(text: str, source: str) -> dict[str, Any]:
    """The content of a JSON or YAML document that must be a mapping."""
    try:
        values = json.loads(text)
    except ValueError:
        values = parse_text(text, source)
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected keys and values")
    return values


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
