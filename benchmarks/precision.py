"""Does bfloat16 change what is trained? `python -m benchmarks.precision`, on the parameters in params.yaml.

Every method of `matrix.methods` is trained with every seed of `matrix.seeds` in fp32 and in bf16;
the selected checkpoints are attacked with every attack of `evaluation`, in float32 both times. The
difference of the means is held against the spread over seeds: agreement means that Welch's 95 %
interval for it contains 0. How little that can exclude, the intervals' widths tell.
"""

import argparse
import itertools
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks import command, timing
from pipeline import machine, params
from pipeline.attacks import suite
from pipeline.cell import Cell
from pipeline.data.store import load_split
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.params import Params
from pipeline.verdicts import NATURAL, WORST_CASE

PRECISIONS = ("fp32", "bf16")
WORK = Path(".work/precision")


def accuracies(p: Params, method: str, seed: int) -> dict[str, float]:
    """Test accuracies of one run, in percent."""
    cell, device = Cell(p, method, seed), machine.resolve(p.runtime.device)
    state = WORK / cell.fingerprint()[:16] / "state.pt"
    progress, model, adversary = cell.train(device, state)
    model.load_state_dict(progress.selected)
    test = load_split(cell.data_folder, "test", device)
    table = suite.verdicts(p.evaluation, list(p.evaluation.attacks), model, test, adversary.perturbations)
    return {name: 100 * value for name, value in table.accuracies().items()}


def compare(values: dict[str, list[float]]) -> dict[str, Any]:
    """Means, standard deviations, and their difference with its interval (a point where no run varies)."""
    means = {name: statistics.mean(runs) for name, runs in values.items()}
    deviations = {name: statistics.stdev(runs) for name, runs in values.items()}
    difference = means["bf16"] - means["fp32"]
    low = high = difference
    if any(deviations.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runs that are all equal on one side are no mistake
            interval = stats.ttest_ind(values["bf16"], values["fp32"], equal_var=False).confidence_interval(0.95)
        low, high = float(interval.low), float(interval.high)
    return {
        "runs": values,
        "mean": means,
        "std": deviations,
        "difference": difference,
        "interval": [low, high],
        "agree": low <= 0 <= high,
    }


def rows(p: Params) -> Iterator[dict[str, Any]]:
    """One row a method and metric."""
    for method in p.matrix.methods:
        found: dict[str, dict[str, list[float]]] = {}
        for precision, seed in itertools.product(PRECISIONS, p.matrix.seeds):
            changed = p.model_copy(update={"train": p.train.model_copy(update={"precision": precision})})
            for metric, value in accuracies(changed, method, seed).items():
                found.setdefault(metric, {name: [] for name in PRECISIONS})[precision].append(value)
        yield from ({"method": method, "metric": metric} | compare(values) for metric, values in found.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = command.parser("precision", __doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    command.run(_run, parser, arguments)


def _run(parsed: argparse.Namespace) -> None:
    p = params.load()
    if len(p.matrix.seeds) < 3:
        raise UserError(f"params.yaml: matrix.seeds: at least 3 for a spread, not {len(p.matrix.seeds)}")
    facts = timing.conditions(machine.prepare(p.runtime)) | {"preset": p.preset, "seeds": p.matrix.seeds}
    print("\n".join(f"{name:12} {value}" for name, value in facts.items()), end="\n\n")
    found = []
    for row in rows(p):
        found.append(row)
        if row["metric"] in (NATURAL, p.ablation.attack, WORST_CASE):
            cells = (f"{row['mean'][name]:6.2f} +- {row['std'][name]:.2f}" for name in PRECISIONS)
            verdict = "agree" if row["agree"] else "differ"
            print(f"{row['method']:12}{row['metric']:12}", *cells, f"{row['difference']:+6.2f}", verdict, flush=True)
    if parsed.output:
        write_json(parsed.output, {"conditions": facts, "rows": found})


if __name__ == "__main__":
    main()
