"""ablation: ADT_EXP for every (lambda, seed) of a grid, to results/ablation/lambda.{csv,png}."""

from pathlib import Path

import torch
from torch import nn

from pipeline import machine, params, perturbation
from pipeline.adversaries.explicit import Explicit
from pipeline.attacks import suite
from pipeline.cell import TRAINING_CODE, Cell
from pipeline.data.store import load_split
from pipeline.diversity import describe
from pipeline.files import digest, digest_code, write_csv
from pipeline.params import Params
from pipeline.plots import ablation as figure
from pipeline.progress import Progress
from pipeline.search.grid import lambda_grid
from pipeline.seeding import Stream
from pipeline.verdicts import NATURAL
from stages.common import WORK, run_stage

FOLDER = Path("results/ablation")
STUDY_CODE = (*TRAINING_CODE, "pipeline/attacks", "pipeline/diversity.py", "stages/ablation.py")


def main() -> None:
    """Run or continue the study, then write its table and figure."""
    p = params.load()
    device = machine.prepare(p.runtime)
    settings = p.ablation

    def evaluate(lam: float, seed: int) -> tuple[float, dict[str, float]]:
        changed = variant(p, lam)
        cell = Cell(changed, "adt_exp", seed)
        best, model, adversary = cell.trained(device, WORK / "ablation")
        return best.robust, measure(changed, cell, model, adversary, device)

    name, storage = study_name(p), WORK / "ablation" / "study.db"
    with Progress("lambda ablation", len(settings.lams) * len(settings.seeds)) as bar:
        rows = lambda_grid(
            settings.lams,
            settings.seeds,
            evaluate,
            storage,
            name,
            lambda row: bar.step(f"lambda {row['lam']:g} seed {row['seed']}"),
        )
    columns = ["lam", "seed", "val_robust", NATURAL, settings.attack, "worst-case"]
    write_csv(FOLDER / "lambda.csv", rows, [*columns, "entropy", "adversarial_loss", "diversity"])
    figure.draw(rows, settings.attack, FOLDER / "lambda.png")


def variant(p: Params, lam: float) -> Params:
    """The parameters of one point: ADT_EXP with this lambda, for the study's epochs."""
    exp = p.methods.adt_exp.model_copy(update={"lam": lam})
    return p.model_copy(
        update={
            "methods": p.methods.model_copy(update={"adt_exp": exp}),
            "train": p.train.model_copy(update={"epochs": p.ablation.epochs}),
        }
    )


def study_name(p: Params) -> str:
    """A name that changes with everything a trial depends on, except its lambda and seed."""
    base = Cell(variant(p, 0.0), "adt_exp", 0).fingerprint()
    studied = [suite.description(p.evaluation, p.ablation.attacks), p.ablation.attack, p.ablation.samples]
    return f"lambda-{digest([base, studied, digest_code(Path(), *STUDY_CODE)])[:32]}"


def measure(p: Params, cell: Cell, model: nn.Module, adversary: Explicit, device: torch.device) -> dict[str, float]:
    """Test accuracies of a trained model, and what its distributions are like on the test images."""
    test = load_split(cell.data_folder, "test", device)
    perturbations = perturbation.build(p.threat.set, p.threat.eps)
    accuracies = suite.verdicts(p.evaluation, p.ablation.attacks, model, test, perturbations).accuracies()
    stream = Stream.of(p.evaluation.seed, "diversity")
    described = describe(adversary, model, test.x, test.y, p.ablation.samples, stream)
    return {name: accuracies[name] for name in (NATURAL, p.ablation.attack, "worst-case")} | vars(described)


if __name__ == "__main__":
    run_stage(main)
