"""compare: all cells' verdicts and histories, to results/comparison.* and results/{curves,tradeoff}.png."""

from pathlib import Path

from pipeline import params
from pipeline.comparison import published, tables
from pipeline.comparison.compare import Result, compare, summarise
from pipeline.files import read_csv, read_json, write_csv, write_json, write_text
from pipeline.health import report
from pipeline.plots import comparison as figures
from pipeline.verdicts import Verdicts
from stages.common import run_folder, run_stage, verdict_file

RESULTS = Path("results")


def main() -> None:
    """Compare every method of the matrix over its seeds."""
    p = params.load()
    results = {m: {s: result(m, s) for s in p.matrix.seeds} for m in p.matrix.methods}
    settings = p.comparison
    comparison = compare(
        results,
        p.data.called,
        settings.reference,
        settings.confidence,
        settings.resamples,
        settings.seed,
        beside(p, results),
    )
    write_json(RESULTS / "comparison.json", comparison)
    write_csv(RESULTS / "comparison.csv", tables.rows(comparison), tables.columns(comparison))
    heading = f"# {p.data.called}, {p.threat.set} eps {p.threat.eps:g}, verdicts {rule(p)}"
    health = report.sentence(read_json(RESULTS / "health.json"))
    write_text(RESULTS / "comparison.md", tables.markdown(comparison, heading) + f"\n{health}\n")
    figures.accuracies(comparison, RESULTS / "comparison.png")
    figures.tradeoff(comparison, RESULTS / "tradeoff.png")
    histories = {m: {s: result.history for s, result in runs.items()} for m, runs in results.items()}
    figures.curves(histories, comparison["selected_epoch"], RESULTS / "curves.png")


def result(method: str, seed: int) -> Result:
    """What the train and attack stages of a cell wrote."""
    folder = run_folder(method, seed)
    epoch = read_json(folder / "metrics.json")["selected_epoch"]
    verdicts = Verdicts.load(verdict_file(method, seed))
    return Result.of(verdicts, read_json(folder / "run.json"), epoch, read_csv(folder / "history.csv"))


def beside(p: params.Params, results: dict[str, dict[int, Result]]) -> dict | None:
    """The published table that params.yaml names, with ours beside; None where it names none."""
    name = p.comparison.published
    if name is None:
        return None
    ours = {
        method: {metric: {"mean": s.mean, "std": s.std} for metric, s in summary.items()}
        for method, summary in summarise(results).items()
    }
    return published.beside(name, ours)


def rule(p: params.Params) -> str:
    """On which iterate the attacks' verdicts were taken, and which attacks were not."""
    any_iterate = [name for name, attack in p.evaluation.attacks.items() if attack.rule == "any"]
    left_out = f"; not defined in this set, left out: {', '.join(p.left_out)}" if p.left_out else ""
    return "on the last iterate" + (f", of {', '.join(any_iterate)} on any iterate" if any_iterate else "") + left_out


if __name__ == "__main__":
    run_stage(main)
