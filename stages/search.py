"""search: hyper-parameters and schedule of one method, to results/search/."""

from typing import Any

from pipeline import machine, params
from pipeline.files import write_json
from pipeline.params import Params
from pipeline.plots import search as figure
from pipeline.progress import Progress
from pipeline.search import schedule, table
from pipeline.search.importance import importance
from pipeline.search.space import made_with
from stages.common import run_stage

FOLDER = table.TRIALS.parent
TARGETS = {"val_robust": "robust accuracy", "gradient_evaluations": "gradient evaluations"}


def main() -> None:
    """Run or continue the study, then write its table, what is chosen from it, and its figures."""
    p = params.load()
    device = machine.prepare(p.runtime)
    with Progress(f"search of {p.search.method}", p.search.trials) as bar:

        def tell(rows: list[dict[str, Any]]) -> None:
            known = table.complete(rows)
            bar.reach(len(rows), f"best robust {table.best(rows)['val_robust']:.3f}" if known else "")

        found = schedule.run(p, device, tell)
    shared = {"method": p.search.method, "seed": p.search.training_seed}
    table.write(table.TRIALS, [row | shared for row in found], list(p.search.paths()))
    rows = table.read(table.TRIALS)  # all that follows is a function of the table
    space = schedule.distributions(p.search)
    shares = {told: importance(rows, space, column) for column, told in TARGETS.items()}
    choose(p, rows, shares)
    draw(p, rows, shares)


def choose(p: Params, rows: list[table.Row], shares: dict[str, dict[str, float]]) -> None:
    """Write the chosen trial, the front, the importances, and what the table belongs to."""
    chosen = table.best(rows)
    write_json(
        table.BEST,
        {
            "chosen": chosen,
            "front": table.front(rows),
            "importance": {name: {n: round(v, 6) for n, v in values.items()} for name, values in shares.items()},
            "made_with": made_with(p),
        },
    )


def draw(p: Params, rows: list[table.Row], shares: dict[str, dict[str, float]]) -> None:
    """Every figure of the table."""
    names = table.parameters(rows)
    logarithmic = {name for name, limits in p.search.space.items() if limits.log}
    figure.history(p.data.called, rows, FOLDER / "history.png")
    figure.importance(p.data.called, shares, p.search.method, FOLDER / "importance.png")
    figure.slices(p.data.called, rows, names, logarithmic, FOLDER / "slice.png")
    figure.parallel(p.data.called, rows, names, logarithmic, FOLDER / "parallel.png")
    figure.pareto(p.data.called, rows, table.front(rows), table.best(rows), FOLDER / "pareto.png")


if __name__ == "__main__":
    run_stage(main)
