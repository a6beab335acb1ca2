"""Runs as their files tell them, from this workspace, from another one, or from MLflow."""

import glob
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import live
from pipeline.comparison.compare import Result
from pipeline.errors import UserError
from pipeline.files import digest, digest_file, read_csv, read_json
from pipeline.tracked import TrackedRun
from pipeline.verdicts import Verdicts

MLFLOW = "mlflow:"


@dataclass(frozen=True)
class Chosen:
    """One run: where it was found, its run.json, its result, and the circumstances of its training.

    `facts`: `seconds` and `device`, as far as they are known where the run was found.
    """

    source: str
    description: Mapping[str, Any]
    result: Result
    facts: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.description["seed"]

    @property
    def data(self) -> str:
        """What its data are called."""
        data = self.description["data"]
        return data.get("title", data["name"])

    @property
    def group(self) -> str:
        """What the seeds of a method with given parameters, data and code share."""
        return TrackedRun(dict(self.description), [], Path()).parent_key

    def settings(self) -> dict[str, Any]:
        """What two runs must share to be compared, flat: data, threat, test examples, attacks and their parameters.

        `UserError` for a verdict table from before tables kept the parameters of attacks.
        """
        table, data, threat = self.result.verdicts, self.description["data"], self.description["threat"]
        if not table.settings:
            raise UserError(
                f"--runs {self.source}: its verdict table does not say the attacks' parameters;"
                " run its attack stage again: dvc repro"
            )
        examples = digest([table.index.tolist(), table.labels.tolist()])
        facts = {"data": f"{self.data} {data['sha256'][:8]}", "attacks": ", ".join(table.attacks)}
        facts |= {"test examples": f"{len(table.labels)} images {examples[:8]}"}
        facts |= {f"threat {key}": value for key, value in threat.items()}
        for attack, text in zip(table.attacks, table.settings, strict=True):
            facts |= {f"{attack} {key}": value for key, value in json.loads(text).items()}
        return facts


def choose(patterns: Sequence[str]) -> list[Chosen]:
    """The runs that patterns name, each once: run folders, `mlflow:RUN_ID` or `mlflow:EXPERIMENT/NAME`.

    `UserError` for a pattern that names nothing, a run without verdicts, and verdicts of another
    checkpoint than the run's.
    """
    found: dict[tuple[str, bytes], Chosen] = {}
    for pattern in patterns:
        runs = _from_mlflow(pattern) if pattern.startswith(MLFLOW) else _from_files(pattern)
        for run in runs:
            table = run.result.verdicts
            verdicts = json.dumps([table.checkpoint, table.attacks, table.settings]).encode() + table.broken.tobytes()
            found.setdefault((run.description["key"], verdicts), run)
    return list(found.values())


def at(folder: Path) -> Chosen:
    """The run of a folder WORKSPACE/runs/METHOD/seed-N, with WORKSPACE/verdicts/METHOD/seed-N.npz."""
    path = folder.absolute()
    verdicts = path.parents[2] / "verdicts" / path.parent.name / f"{path.name}.npz"
    for needed in (*(folder / name for name in ("run.json", "metrics.json", "history.csv")), verdicts):
        if not needed.exists():
            raise UserError(f"--runs {folder}: {needed} is missing; dvc repro makes it")
    table, checkpoint = Verdicts.load(verdicts), folder / "model.safetensors"
    if checkpoint.exists() and digest_file(checkpoint) != table.checkpoint:
        raise UserError(f"--runs {folder}: {verdicts} is about another checkpoint than this one; run dvc repro there")
    description, history = read_json(folder / "run.json"), read_csv(folder / "history.csv")
    facts = live.recorded(description["key"]) or _sent(folder)
    known = {"seconds": facts["seconds"], "device": facts["machine"]["device"]} if facts else {}
    epoch = read_json(folder / "metrics.json")["selected_epoch"]
    return Chosen(str(folder), description, Result.of(table, description, epoch, history), known)


def _sent(folder: Path) -> Mapping[str, Any]:
    """The circumstances of a training on another machine, which its campaign sent along; {} without."""
    device = folder / "device.json"
    return read_json(device)["training"] if device.exists() else {}


def _from_files(pattern: str) -> list[Chosen]:
    folders = [Path(path) for path in sorted(glob.glob(pattern)) if (Path(path) / "run.json").exists()]
    if not folders:
        raise UserError(f"--runs {pattern}: no folder with a run.json; give runs/METHOD/seed-N or mlflow:RUN_ID")
    return [at(folder) for folder in folders]


def _from_mlflow(pattern: str) -> list[Chosen]:
    from pipeline import tracking

    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for run_id, files, metrics, tags in tracking.download(pattern.removeprefix(MLFLOW), Path(folder)):
            description = read_json(files / "run.json")
            table = Verdicts.load(files / f"seed-{description['seed']}.npz")
            history = read_csv(files / "history.csv")
            result = Result.of(table, description, int(metrics["selected_epoch"]), history)
            facts = {"seconds": metrics.get("seconds"), "device": tags.get("machine.device")}
            known = {name: value for name, value in facts.items() if value is not None}
            runs.append(Chosen(MLFLOW + run_id, description, result, known))
    return runs
