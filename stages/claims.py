"""claims: what the lambda study supports, from results/ablation/lambda.csv to results/ablation/claims.{json,md}."""

from pathlib import Path

from pipeline import params
from pipeline.files import read_json, write_json, write_text
from pipeline.studies import claims, claims_text
from stages.common import run_stage

FOLDER = Path("results/ablation")


def main() -> None:
    """Judge the table and say it in words."""
    p = params.load()
    judged = claims.judge(claims.read(FOLDER / "lambda.csv"), p.ablation.attack, p.ablation.confidence)
    images = read_json(Path("data") / p.data.name / "meta.json")["counts"]["test"]
    write_json(FOLDER / "claims.json", judged)
    write_text(FOLDER / "claims.md", claims_text.markdown(p.data.called, judged, p.ablation.epochs, images))


if __name__ == "__main__":
    run_stage(main)
