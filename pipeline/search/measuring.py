"""What one trial measures: a training looked at on the validation set, finished or given up half-way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline import live
from pipeline.cell import Cell
from pipeline.data.store import load_meta
from pipeline.files import read_json, write_json
from pipeline.training.selection import Scores

# Receives the scores of all epochs so far; true gives the training up.
Report = Callable[[Sequence[Scores]], bool]


@dataclass(frozen=True)
class Measured:
    """Validation accuracies in [0, 1] of the selected epoch, and the gradient evaluations of the epochs trained.

    `pruned_at`: the epoch after which the training was given up, None where it came to its end.
    """

    val_robust: float
    val_natural: float
    gradient_evaluations: int
    selected_epoch: int
    pruned_at: int | None


class _GivenUp(Exception):
    """Leaves the training loop from its epoch callback."""


def measure(cell: Cell, device: torch.device, work: Path, report: Report) -> Measured:
    """Train a cell, or read back what an equal one did, and report every epoch once, in order.

    A training that was interrupted in `work` is continued from its last saved batch; the epochs it had
    behind it are reported, too, so that it is given up where it would have been. Test data are not read.
    """
    folder = work / cell.fingerprint()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    reported: list[Scores] = []

    def look(history: Sequence[Scores]) -> None:
        for scores in history[len(reported) :]:
            reported.append(scores)
            # After the last epoch there is nothing left to give up.
            if report(reported) and len(reported) < cell.params.train.epochs:
                raise _GivenUp

    with live.lock(str((folder / "training").relative_to(live.WORK))):  # another worker may be at this very point
        try:
            look(_history(cell, device, folder, look))
        except _GivenUp:
            (folder / "state.pt").unlink(missing_ok=True)
            return summary(cell, reported, len(reported))
    return summary(cell, reported, None)


def summary(cell: Cell, scores: Sequence[Scores], pruned_at: int | None) -> Measured:
    """What a training with these scores, one an epoch, is worth; the first of equal epochs is selected, as in training.

    Gradient evaluations are counted as in run.json: those of adversary and classifier, all epochs and examples.
    """
    _, adversary, _ = cell.build(torch.device("cpu"))
    selected = max(range(len(scores)), key=lambda epoch: scores[epoch].rank(adversary.selects_by))
    evaluations = adversary.gradient_evaluations + adversary.training_evaluations
    examples = load_meta(cell.data_folder)["counts"]["train"]
    best = scores[selected]
    return Measured(best.robust, best.natural, evaluations * len(scores) * examples, selected + 1, pruned_at)


def _history(
    cell: Cell, device: torch.device, folder: Path, look: Callable[[Sequence[Scores]], None]
) -> Sequence[Scores]:
    """The scores of every epoch of the whole training; `look` sees them as they come."""
    record = folder / "history.json"
    if record.exists():
        return [Scores(**row) for row in read_json(record)]
    progress, _, _ = cell.train(device, folder / "state.pt", lambda history: look(_scores(history)))
    scores = _scores(progress.history)
    write_json(record, [vars(row) for row in scores])
    (folder / "state.pt").unlink()
    return scores


def _scores(history: Sequence[dict]) -> list[Scores]:
    return [Scores(row["val_natural"], row["val_robust"]) for row in history]
