"""What the report shows, gathered from the files that the stages wrote."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import digest_file, read_csv, read_json
from pipeline.transfer import Transfer, cell_name, method_of

if TYPE_CHECKING:
    from pipeline.params import Params

RESULTS = Path("results")
# Figure, the stage that draws it, and what it shows.
FIGURES = (
    ("comparison.png", "compare", "Accuracy under every attack: means, deviations over seeds, single runs"),
    ("tradeoff.png", "compare", "Worst-case accuracy against the cost of training, and against natural accuracy"),
    ("curves.png", "compare", "Accuracy on validation images while training; the selected epochs are ringed"),
    ("health.png", "health", "Accuracy as the set grows, and the checks of every run"),
    ("transfer/transfer.png", "transfer", "Every model under attacks made with every other"),
    ("landscape/landscape.png", "landscape", "Loss surfaces around test images, mean over images and seeds"),
    ("landscape/surface.png", "landscape", "The same in space"),
    ("landscape/images.png", "landscape", "Loss surfaces around single test images"),
    ("landscape/curvature.png", "landscape", "Curvature, linearity and range of the loss around test images"),
    ("diversity/measures.png", "diversity", "Samples of distributions, of PGD with restarts and of noise"),
    ("diversity/projection.png", "diversity", "The samples of single images in a plane, and the loss there"),
    ("diversity/images.png", "diversity", "Clean images, perturbations and perturbed images"),
    ("diversity/budget.png", "diversity", "Loss reached and images broken against cost"),
    ("ablation/lambda.png", "ablation", "Training against lambda"),
    ("degeneracy/degeneracy.png", "degeneracy", "ADT_EXP with lambda 0 beside AT_PGD"),
    ("search/pareto.png", "search", "The search: validation accuracy under attack against the cost of training"),
    ("search/history.png", "search", "The search, trial by trial"),
    ("search/importance.png", "search", "Which parameters mattered to the search"),
    ("search/slice.png", "search", "The search, parameter by parameter"),
    ("search/parallel.png", "search", "The search, a line a trial"),
)
# What stages wrote for people, and what it is.
TEXTS = (
    ("ablation/claims.md", "Which claims about lambda hold"),
    ("diversity/diversity.md", "What a distribution knows"),
    ("landscape/curvature.md", "How curved the loss is"),
)
TABLES = ("ablation/lambda.csv", "degeneracy/accuracy.csv", "search/trials.csv")


@dataclass(frozen=True)
class Figure:
    """A figure inside the page: `source` is a data URI, `command` makes it again."""

    source: str
    caption: str
    command: str


@dataclass(frozen=True)
class Run:
    """One (method, seed): where its numbers come from.

    `facts`: names and values that identify it; `commands` make it again; `parameters`: those of
    its method and of the training loop, flat.
    """

    method: str
    seed: int
    facts: dict[str, Any]
    commands: list[str]
    parameters: dict[str, Any]

    @property
    def anchor(self) -> str:
        """The run's place in the page."""
        return cell_name(self.method, self.seed)


def gather(p: "Params", runs: Path, verdicts: Path, results: Path = RESULTS) -> dict[str, Any]:
    """Everything the template needs; the files are those of a finished reproduction."""
    cells = [(method, seed) for method in p.matrix.methods for seed in p.matrix.seeds]
    transfer = Transfer.load(results / "transfer" / "verdicts.npz")
    return {
        "title": f"{p.data.called}, {p.threat.set} eps {p.threat.eps:g}",
        "preset": p.preset,
        "seeds": p.matrix.seeds,
        "comparison": read_json(results / "comparison.json"),
        "health": read_json(results / "health.json"),
        "transfer": {attack: transfer.crosses(attack) for attack in transfer.attacks},
        "targets": list(dict.fromkeys(map(method_of, transfer.targets))),
        "runs": [run(method, seed, runs, verdicts) for method, seed in cells],
        "attacks": {name: _set_keys(attack) for name, attack in p.evaluation.attacks.items()},
        "figures": [figure(results / name, stage, caption) for name, stage, caption in FIGURES],
        "texts": {caption: (results / name).read_text() for name, caption in TEXTS},
        "tables": {name: read_csv(results / name) for name in TABLES},
    }


def run(method: str, seed: int, runs: Path, verdicts: Path) -> Run:
    """One run's facts from its run.json, metrics and files."""
    folder = runs / method / f"seed-{seed}"
    described, metrics = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    facts = {
        "content key": described["key"],
        "data": described["data"].get("title", described["data"]["name"]),
        "data sha256": described["data"]["sha256"],
        "code sha256": described["code"],
        "checkpoint": str(folder / "model.safetensors"),
        "checkpoint sha256": digest_file(folder / "model.safetensors"),
        "verdicts": str(verdicts / method / f"seed-{seed}.npz"),
        "verdicts sha256": digest_file(verdicts / method / f"seed-{seed}.npz"),
        "selected epoch": metrics["selected_epoch"],
        "gradient evaluations of the training": described["gradient_evaluations"],
    }
    commands = [f"dvc repro {stage}@{method}-{seed}" for stage in ("train", "attack", "probe")]
    parameters = _flat(described["method_params"]) | _flat(described["train"]) | _flat(described["threat"])
    return Run(method, seed, facts, commands, parameters | _flat(described["model"], "model"))


def figure(path: Path, stage: str, caption: str) -> Figure:
    """A PNG file as a data URI."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    return Figure(f"data:image/png;base64,{encoded}", caption, f"dvc repro {stage}")


def _set_keys(attack: Any) -> dict[str, Any]:
    """The parameters of an attack that are not at their defaults, and its family."""
    return {"family": attack.family} | attack.model_dump(exclude_defaults=True, exclude={"family"})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; what is not set is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        elif value is not None:
            flat[name] = value
    return flat
