"""degeneracy: ADT_EXP with lambda = 0 beside AT_PGD, to results/degeneracy/."""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import machine, params
from pipeline.adversaries.explicit import Explicit
from pipeline.attacks import suite
from pipeline.cell import Cell
from pipeline.data.store import Split, load_split
from pipeline.files import digest, digest_code, read_json, write_csv, write_json
from pipeline.params import Params
from pipeline.plots import degeneracy as figure
from pipeline.progress import Progress
from pipeline.seeding import Stream
from pipeline.studies.degeneracy import agreement, collapse, pgd_loss
from pipeline.verdicts import NATURAL, WORST_CASE, Verdicts
from stages.common import WORK, run_folder, run_stage

FOLDER = Path("results/degeneracy")
TWINS = ("at_pgd", "adt_exp")
MEASURING_CODE = (
    "pipeline/attacks",
    "pipeline/studies/degeneracy.py",
    "pipeline/studies/diversity.py",
    "pipeline/samplers.py",
    "stages/degeneracy.py",
)


def main() -> None:
    """Train both methods with every seed, attack them, and look at the distributions on the models of lambda = 0."""
    p = without_entropy(params.load())
    device = machine.prepare(p.runtime)
    test = load_split(Path("data") / p.data.name, "test", device)
    verdicts: dict[tuple[str, int], Verdicts] = {}
    widths: list[dict[str, Any]] = []
    with Progress("degeneracy", len(TWINS) * len(p.degeneracy.seeds)) as bar:
        for method, seed in itertools.product(TWINS, p.degeneracy.seeds):
            verdicts[method, seed], rows = measured(Cell(p, method, seed), test, device)
            widths += [{"seed": seed, **row} for row in rows]
            bar.step(f"{method} seed {seed}")
    table = accuracies(p, verdicts)
    attack = p.degeneracy.attack
    columns = ["method", "seed", NATURAL, attack, WORST_CASE, "agreement_with_at_pgd", "agreement_of_at_pgd_seeds"]
    write_csv(FOLDER / "accuracy.csv", table, columns)
    write_csv(FOLDER / "width.csv", widths, ["seed", "lam", "steps", "deviation", "loss", "pgd_loss"])
    figure.draw(p.data.called, widths, table, attack, p.methods.adt_exp.steps, FOLDER / "degeneracy.png")


def measured(cell: Cell, test: Split, device: torch.device) -> tuple[Verdicts, list[dict[str, Any]]]:
    """A trained model's verdicts and, for ADT_EXP, the widths of distributions on it; read back if done before."""
    p = cell.params
    looked_at = [suite.description(p.evaluation, p.degeneracy.attacks), p.degeneracy.model_dump(exclude={"seeds"})]
    key = digest([cell.fingerprint(), looked_at, digest_code(Path(), *MEASURING_CODE)])
    table, rows = (WORK / "degeneracy" / "measured" / f"{key[:32]}{end}" for end in (".npz", ".json"))
    if not rows.exists():
        _, model, adversary = cell.trained(device, WORK / "degeneracy", run_folder(cell.method, cell.seed))
        suite.verdicts(p.evaluation, p.degeneracy.attacks, model, test, adversary.perturbations).save(table)
        few = test.head(p.degeneracy.images)
        write_json(rows, widths_on(p, model, adversary, few) if isinstance(adversary, Explicit) else [])
    return Verdicts.load(table), read_json(rows)


def without_entropy(p: Params) -> Params:
    """The parameters with ADT_EXP's lambda at 0."""
    methods = p.methods.model_copy(update={"adt_exp": p.methods.adt_exp.model_copy(update={"lam": 0.0})})
    return p.model_copy(update={"methods": methods})


def widths_on(p: Params, model: nn.Module, adversary: Explicit, examples: Split) -> list[dict[str, Any]]:
    """How wide distributions are on one model, for every lambda and number of inner steps, and PGD's loss on it."""
    d, pgd = p.degeneracy, p.methods.at_pgd
    stream = Stream.of(p.evaluation.seed, "degeneracy")
    point = pgd_loss(model, examples, adversary.perturbations, pgd.steps, pgd.step_size, stream)
    rows = collapse(adversary, model, examples, d.lams, d.steps, d.samples, stream)
    return [row | {"pgd_loss": point} for row in rows]


def accuracies(p: Params, verdicts: dict[tuple[str, int], Verdicts]) -> list[dict[str, Any]]:
    """A row a model; agreement of verdicts with AT_PGD of the same seed, and of AT_PGD with its own other seeds."""
    d, rows = p.degeneracy, []
    for (method, seed), table in verdicts.items():
        values = table.accuracies()
        row = {"method": method, "seed": seed} | {name: values[name] for name in (NATURAL, d.attack, WORST_CASE)}
        if method == "at_pgd":
            others = [agreement(table, verdicts[method, s], d.attack) for s in d.seeds if s != seed]
            row["agreement_of_at_pgd_seeds"] = sum(others) / len(others) if others else None
        else:
            row["agreement_with_at_pgd"] = agreement(table, verdicts["at_pgd", seed], d.attack)
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_stage(main)
