"""ablation: every point of the lambda grid beside AT_PGD, to results/ablation/lambda.{csv,png,svg}."""

from pathlib import Path
from typing import Any

from pipeline import machine, params
from pipeline.files import write_csv
from pipeline.plots import ablation as figure
from pipeline.progress import Progress
from pipeline.search.grid import run_grid
from pipeline.studies import lambda_study
from pipeline.studies.lambda_study import Point, Study
from stages.common import WORK, run_stage

FOLDER, OWN = Path("results/ablation"), WORK / "ablation"


def main() -> None:
    """Run or continue the study of every method, then write table and figure."""
    p = params.load()
    points = lambda_study.points(p)
    device = machine.prepare(p.runtime)
    rows: list[dict[str, Any]] = []
    with Progress("lambda ablation", sum(map(len, points.values()))) as bar:
        for method, wanted in points.items():
            study = Study(p, method, device, OWN)
            found = run_grid(
                [point.coordinates() for point in wanted],
                lambda values, study=study: study.evaluate(Point(study.method, **values)),
                OWN / "study.db",
                study.name(),
                lambda row, method=method: bar.step(_told(method, row)),
            )
            rows += [lambda_study.row(*pair) for pair in zip(wanted, found, strict=True)]
    write_csv(FOLDER / "lambda.csv", rows, lambda_study.columns(p))
    figure.draw(p.data.called, rows, p.ablation.attack, FOLDER / "lambda.png")


def _told(method: str, row: dict[str, Any]) -> str:
    """A point for people."""
    return " ".join([method, *(f"{name} {row[name]:g}" for name in ("lam", "tau", "seed") if name in row)])


if __name__ == "__main__":
    run_stage(main)
