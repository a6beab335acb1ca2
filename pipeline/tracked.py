"""Training runs as the files tell them, in the form a tracker wants; knows nothing of any tracker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pipeline import live
from pipeline.files import digest, digest_file, read_csv, read_json
from pipeline.gauges import GAUGES
from pipeline.reproduction import entries
from pipeline.verdicts import Verdicts

if TYPE_CHECKING:
    from pipeline.params import Params

RESULTS = Path("results")
OUTPUTS = ("run.json", "metrics.json", "history.csv", "model.safetensors")  # of a training that is complete


@dataclass(frozen=True)
class TrackedRun:
    """One (method, seed): its description (run.json), history, and what is finished of it.

    `folder` holds the run's files; `verdicts` is its table, if there is one that belongs to
    this very checkpoint.
    """

    description: dict[str, Any]
    history: Sequence[dict[str, str]]
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    verdicts: Path | None = None

    @property
    def method(self) -> str:
        """Name of the training method."""
        return self.description["method"]

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.description["seed"]

    @property
    def key(self) -> str:
        """Content key: a hash of parameters, data and code."""
        return self.description["key"]

    @property
    def parent_key(self) -> str:
        """Content key shared by the seeds of a method."""
        kept = ("method", "data", "threat", "model", "train", "method_params", "code")
        return digest({name: self.description[name] for name in kept})

    @property
    def status(self) -> str:
        """In MLflow's words: FINISHED, RUNNING, or KILLED where the process that trained it is gone."""
        if self.checkpoint:
            return "FINISHED"
        pid = self.folder / "pid"
        return "RUNNING" if pid.exists() and live.is_alive(int(pid.read_text())) else "KILLED"

    @property
    def verdicts_digest(self) -> str:
        """Hash of the verdict table."""
        return digest_file(self.verdicts)

    @property
    def started_ms(self) -> int | None:
        """When training began, in milliseconds since 1970; None (now) where it is not known."""
        if self.checkpoint is None:
            return int(1000 * (self.folder / "run.json").stat().st_mtime)
        facts = live.recorded(self.key)
        return int(1000 * (facts["finished"] - facts["seconds"])) if facts else None

    @property
    def finished_ms(self) -> int | None:
        """When training ended, likewise."""
        facts = live.recorded(self.key)
        return int(1000 * facts["finished"]) if facts else None

    @property
    def data(self) -> str:
        """What its data are called."""
        data = self.description["data"]
        return data.get("title", data["name"])

    def params(self) -> dict[str, Any]:
        """Flat parameters under names that every method shares; what is not set is left out."""
        d = self.description
        flat = {"method": d["method"], "seed": d["seed"], "data": self.data} | d["threat"]
        flat |= {"model" if key == "name" else key: value for key, value in d["model"].items()}
        for name, value in d["train"].items():
            if name in ("selection", "schedule"):
                flat |= {name if key == "name" else f"{name}_{key}": inner for key, inner in value.items()}
            elif isinstance(value, dict):
                flat |= value
            else:
                flat[name] = value
        own = {setting_name(name): value for name, value in d["method_params"].items()}
        return {name: value for name, value in (flat | own).items() if value is not None}

    def tags(self) -> dict[str, str]:
        """What a run is known by from its first moment."""
        data = self.description["data"]
        return {
            "dataset": self.data,
            "dataset_sha256": data["sha256"],
            "code_sha256": self.description["code"],
            "mlflow.source.name": f"dvc repro train@{self.method}-{self.seed}",
            "mlflow.source.type": "LOCAL",
        }

    def totals(self) -> dict[str, float]:
        """Numbers about the whole training."""
        names = ("gradient_evaluations", "gradient_evaluations_per_example_and_epoch", "classifier_parameters")
        values = {name: self.description[name] for name in names}
        facts = live.recorded(self.key)
        measured = {name: facts[name] for name in ("seconds", "gpu_memory_peak_mib") if facts.get(name)}
        return values | {"selected_epoch": self.metrics["selected_epoch"]} | measured

    def gauges(self) -> list[tuple[str, float, int, int]]:
        """Samples of the GPU while it trained: name, value, milliseconds since 1970, place in the series."""
        samples = live.recorded(self.key).get("gauges", [])
        return [
            (name, value, int(1000 * when), place)
            for place, (when, *values) in enumerate(samples)
            for name, value in zip(GAUGES, values, strict=True)
        ]

    def circumstances(self) -> dict[str, str]:
        """Commit and machine of the training, or, for outputs that came from a cache, that they did."""
        facts = live.recorded(self.key)
        if not facts:
            return {"adt.origin": "DVC cache"}
        tags = {f"machine.{name}": value for name, value in facts["machine"].items()}
        tags["machine.fingerprint"] = digest(facts["machine"])[:16]
        if "commit" in facts:
            tags |= {"mlflow.source.git.commit": facts["commit"], "git_dirty": str(facts["dirty"]).lower()}
        return tags | {"adt.origin": "this workspace"}

    def locked(self) -> dict[str, str]:
        """DVC's stages and the MD5 of their outputs, as far as dvc.lock has them for these very files."""
        tags: dict[str, str] = {}
        for stage, proof in (("train", self.folder / "run.json"), ("attack", self.verdicts)):
            entry = entries.entry(f"{stage}@{self.method}-{self.seed}")
            if entry and proof and entry.describes(proof):
                tags[f"dvc.{stage}"] = entry.stage
                tags |= {f"dvc.md5.{path}": md5 for path, md5 in entry.outputs.items()}
        return tags

    def health(self) -> dict[str, dict[str, Any]]:
        """The checks of results/health.json on this checkpoint: name -> figure, passed; {} where it was not probed."""
        report, probe = RESULTS / "health.json", Path("probes") / self.method / f"seed-{self.seed}.json"
        if self.checkpoint is None or not (report.exists() and probe.exists()):
            return {}
        if read_json(probe)["checkpoint"] != digest_file(self.checkpoint):
            return {}
        return read_json(report)["cells"].get(self.method, {}).get(str(self.seed), {})

    def accuracies(self) -> dict[str, float]:
        """Test accuracies in percent, as `test_ATTACK`."""
        table = Verdicts.load(self.verdicts)
        return {f"test_{name}": round(100 * value, 4) for name, value in table.accuracies().items()}

    def attack_costs(self) -> dict[str, float]:
        """What each attack cost: `attack_KIND_ATTACK`, counts an example, and seconds where they were taken here."""
        costs = Verdicts.load(self.verdicts).costs()
        flat = {f"attack_{kind}_{name}": value for name, kinds in costs.items() for kind, value in kinds.items()}
        seconds = live.recorded(self.verdicts_digest).get("attack_seconds", {})
        return flat | {f"attack_seconds_{name}": value for name, value in seconds.items() if value is not None}


def setting_name(name: str) -> str:
    """The name of a method's parameter: those that methods are compared by stay short, the others come after them.

    MLflow's compare page opens on the first three parameters, by name, in which runs differ: lam, method, samples.
    """
    return name if name in ("lam", "samples", "steps", "step_size") else f"setting.{name}"


def spread(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric over runs, and with three or more its sample deviation as `..._std`."""
    values = {name: [t[name] for t in tables if name in t] for name in (tables[0] if tables else ())}
    means = {name: fmean(v) for name, v in values.items()}
    return means | {f"{name}_std": stdev(v) for name, v in values.items() if len(v) >= 3}


def finished_runs(p: "Params") -> Iterator[TrackedRun]:
    """Every cell of the matrix whose training outputs are complete."""
    for method in p.matrix.methods:
        for seed in p.matrix.seeds:
            folder = Path("runs") / method / f"seed-{seed}"
            if not all((folder / name).exists() for name in OUTPUTS):
                continue
            verdicts = Path("verdicts") / method / f"seed-{seed}.npz"
            checkpoint = folder / "model.safetensors"
            current = verdicts.exists() and Verdicts.load(verdicts).checkpoint == digest_file(checkpoint)
            yield TrackedRun(
                read_json(folder / "run.json"),
                read_csv(folder / "history.csv"),
                folder,
                read_json(folder / "metrics.json"),
                checkpoint,
                verdicts if current else None,
            )


def unfinished_runs() -> Iterator[TrackedRun]:
    """Trainings that are under way (or were killed) in the work folder."""
    for path in sorted(live.WORK.glob("train/*/run.json")):  # written last, so the folder is complete
        history = path.with_name("history.csv")
        yield TrackedRun(read_json(path), read_csv(history) if history.exists() else [], path.parent)


def result_files() -> list[Path]:
    """Tables and figures in results/; arrays stay out."""
    wanted = {".json", ".csv", ".md", ".png", ".html"}
    return sorted(path for path in RESULTS.rglob("*") if path.suffix in wanted)
