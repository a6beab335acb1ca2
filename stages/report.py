"""report: every table and figure on one self-contained page, results/report.html."""

from pathlib import Path

from pipeline import params
from pipeline.files import write_text
from pipeline.report import content, page
from stages.common import run_stage


def main() -> None:
    """Gather the files of the other stages and render the page."""
    gathered = content.gather(params.load(), Path("runs"), Path("verdicts"))
    write_text(Path("results/report.html"), page.render(gathered))


if __name__ == "__main__":
    run_stage(main)
