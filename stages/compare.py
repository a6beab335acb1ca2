"""compare: all cells' verdicts and histories, to results/comparison.* and results/curves.png."""

from pathlib import Path

from pipeline import params, plots
from pipeline.compare import compare, markdown, rows
from pipeline.files import read_csv, read_json, write_csv, write_json, write_text
from pipeline.verdicts import Verdicts
from stages.common import run_folder, run_stage, verdict_file

RESULTS = Path("results")


def main() -> None:
    """Compare every method of the matrix over its seeds."""
    p = params.load()
    methods, seeds = p.matrix.methods, p.matrix.seeds
    runs = {m: {s: read_json(run_folder(m, s) / "run.json") for s in seeds} for m in methods}
    metrics = {m: {s: read_json(run_folder(m, s) / "metrics.json") for s in seeds} for m in methods}
    comparison = compare(
        {m: {s: Verdicts.load(verdict_file(m, s)) for s in seeds} for m in methods},
        costs={m: runs[m][seeds[0]]["gradient_evaluations_per_example_and_epoch"] for m in methods},
        selected={m: {s: metrics[m][s]["selected_epoch"] for s in seeds} for m in methods},
        reference=p.comparison.reference,
        level=p.comparison.confidence,
    )
    heading = f"# {p.data.name}, {p.threat.set} eps {p.threat.eps:g}, verdicts {rule(p)}"
    table = rows(comparison)
    write_json(RESULTS / "comparison.json", comparison)
    columns = ["method", "metric", "mean", "std", *(f"seed_{s}" for s in seeds)]
    write_csv(RESULTS / "comparison.csv", table, columns + [f"difference_{k}" for k in ("mean", "low", "high")])
    write_text(RESULTS / "comparison.md", markdown(comparison, heading))
    plots.comparison(comparison, RESULTS / "comparison.png")
    histories = {m: {s: read_csv(run_folder(m, s) / "history.csv") for s in seeds} for m in methods}
    plots.curves(histories, comparison["selected_epoch"], RESULTS / "curves.png")


def rule(p: params.Params) -> str:
    """On which iterate the attacks' verdicts were taken."""
    any_iterate = [name for name, attack in p.evaluation.attacks.items() if attack.rule == "any"]
    return "on the last iterate" + (f", of {', '.join(any_iterate)} on any iterate" if any_iterate else "")


if __name__ == "__main__":
    run_stage(main)
