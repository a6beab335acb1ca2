"""Verdict tables: for one checkpoint, which attack broke which example.

Accuracies are read from the table, never stored beside it: accuracy under an
attack is one minus a row mean, worst-case accuracy comes from the OR of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files import write_npz

NATURAL = "natural"
WORST_CASE = "worst-case"


@dataclass(frozen=True)
class Column:
    """One attack's result on N examples: broken bool (N,), margin and norm float32 (N,).

    `margin`: z_y - max other logit on the attacked image, positive where it holds.
    `norm`: size of the perturbation in the threat model's norm.
    """

    broken: np.ndarray
    margin: np.ndarray
    norm: np.ndarray


@dataclass(frozen=True)
class Verdicts:
    """The table: `broken`, `margin`, `norm` are (attacks, N); `labels`, `index` are (N,).

    `index` is the example's place in the source data, the same for every checkpoint;
    `checkpoint` is the SHA-256 of the model file that was attacked.
    """

    attacks: list[str]
    broken: np.ndarray
    margin: np.ndarray
    norm: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    checkpoint: str

    @classmethod
    def join(cls, columns: dict[str, Column], labels: np.ndarray, index: np.ndarray, checkpoint: str) -> "Verdicts":
        """A table of named columns over the same examples."""
        parts = [np.stack([getattr(c, name) for c in columns.values()]) for name in ("broken", "margin", "norm")]
        return cls(list(columns), *parts, labels, index, checkpoint)

    def save(self, path: Path) -> None:
        """Write the table as .npz, atomically."""
        write_npz(
            path,
            attacks=np.array(self.attacks),
            broken=self.broken,
            margin=self.margin,
            norm=self.norm,
            labels=self.labels,
            index=self.index,
            checkpoint=np.array(self.checkpoint),
        )

    @classmethod
    def load(cls, path: Path) -> "Verdicts":
        """Read a table written by `save`."""
        with np.load(path) as arrays:
            rest = [arrays[name] for name in ("broken", "margin", "norm", "labels", "index")]
            return cls([str(name) for name in arrays["attacks"]], *rest, str(arrays["checkpoint"]))

    def broken_by(self, attacks: Sequence[str]) -> np.ndarray:
        """Examples that at least one of `attacks` breaks: bool (N,)."""
        return self.broken[[self.attacks.index(name) for name in attacks]].any(0)

    def accuracy(self, attack: str) -> float:
        """Share of examples that hold under `attack`; `worst-case` means under every attack at once."""
        names = self.attacks if attack == WORST_CASE else [attack]
        return float(1 - self.broken_by(names).mean())

    def accuracies(self) -> dict[str, float]:
        """Accuracy under each attack in table order, then the worst case."""
        return {name: self.accuracy(name) for name in [*self.attacks, WORST_CASE]}

    def first_breaking(self) -> list[str | None]:
        """For each example the first attack in table order that breaks it, None where all fail."""
        first = self.broken.argmax(0)
        return [self.attacks[a] if broken else None for a, broken in zip(first, self.broken.any(0), strict=True)]
