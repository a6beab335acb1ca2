"""health: every check on every cell, to results/health.*; a failure may stop the pipeline."""

import sys
from pathlib import Path

from pipeline import params
from pipeline.files import read_json, write_json, write_text
from pipeline.health import checks, report
from pipeline.plots import health as figure
from pipeline.transfer import Transfer, cell_name, markdown
from pipeline.verdicts import Verdicts
from stages.common import probe_file, run_stage, verdict_file

RESULTS = Path("results")


def main() -> None:
    """Judge the probes, verdicts and transferred attacks of all cells; exit status 1 where the gate is shut."""
    p = params.load()
    transfer = Transfer.load(RESULTS / "transfer" / "verdicts.npz")
    probes = {(m, s): read_json(probe_file(m, s)) for m in p.matrix.methods for s in p.matrix.seeds}
    judged = {
        cell: checks.judge(
            checks.evidence(
                probe,
                p.evaluation.attacks,
                p.health.attacks,
                Verdicts.load(verdict_file(*cell)),
                set(transfer.index[transfer.broken_by_others(cell_name(*cell))].tolist()),
            )
        )
        for cell, probe in probes.items()
    }
    found = report.summary(judged, p.health.gate)
    write_json(RESULTS / "health.json", found)
    heading = f"# Health of the evaluation: {p.data.called}, {p.threat.set} eps {p.threat.eps:g}"
    page = report.markdown(found, heading, p.health.images)
    write_text(RESULTS / "health.md", f"{page}\n{markdown(transfer, '## Transfer between models')}")
    figure.draw({cell: probe.get("radii", {}) for cell, probe in probes.items()}, found, RESULTS / "health.png")
    for line in found["failures"]:
        print(f"health: {line}", file=sys.stderr)
    if found["failures"] and p.health.gate == "stop":
        print("health: the gate is shut (health.gate: stop in params.yaml)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_stage(main)
