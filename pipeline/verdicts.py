"""Verdict tables: for one checkpoint, which attack broke which example.

Accuracies are read from the table, never stored beside it: accuracy under an
attack is one minus a row mean, worst-case accuracy comes from the OR of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.files import write_npz

NATURAL = "natural"
WORST_CASE = "worst-case"
COLUMN = ("broken", "margin", "norm", "gradient_evaluations", "forward_passes")


@dataclass(frozen=True)
class Column:
    """One attack's result on N examples: broken bool (N,), margin and norm float32 (N,), and what it cost.

    `margin`: z_y - max other logit on the attacked image, positive where it holds.
    `norm`: size of the perturbation in the threat model's norm.
    `gradient_evaluations`: images that went through the model for a gradient, forwards and
    backwards, all examples together; `forward_passes`: those that went through forwards
    alone, without the verdict's own passes.
    """

    broken: np.ndarray
    margin: np.ndarray
    norm: np.ndarray
    gradient_evaluations: int = 0
    forward_passes: int = 0

    def save(self, path: Path) -> None:
        """Write the column as .npz, atomically."""
        write_npz(path, **{name: np.asarray(getattr(self, name)) for name in COLUMN})

    @classmethod
    def load(cls, path: Path) -> "Column":
        """Read a column written by `save`."""
        with np.load(path) as arrays:
            broken, margin, norm, *costs = (arrays[name] for name in COLUMN)
            return cls(broken, margin, norm, *map(int, costs))


@dataclass(frozen=True)
class Verdicts:
    """The table: `broken`, `margin`, `norm` are (attacks, N); the two costs (attacks,); `labels`, `index` (N,).

    `index` is the example's place in the source data, the same for every checkpoint;
    `checkpoint` is the SHA-256 of the model file that was attacked. `settings` says with which
    parameters each attack ran, as JSON in the order of `attacks`; empty where whoever joined the
    table did not say, and in files from before there was such an array.
    """

    attacks: list[str]
    broken: np.ndarray
    margin: np.ndarray
    norm: np.ndarray
    gradient_evaluations: np.ndarray
    forward_passes: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    checkpoint: str
    settings: list[str] = field(default_factory=list)

    @classmethod
    def join(
        cls,
        columns: dict[str, Column],
        labels: np.ndarray,
        index: np.ndarray,
        checkpoint: str,
        settings: Mapping[str, str] | None = None,
    ) -> "Verdicts":
        """A table of named columns over the same examples; `settings`: the parameters of each, by the same names."""
        parts = [np.stack([getattr(c, name) for c in columns.values()]) for name in COLUMN]
        said = [] if settings is None else [settings[name] for name in columns]
        return cls(list(columns), *parts, labels, index, checkpoint, said)

    def save(self, path: Path) -> None:
        """Write the table as .npz, atomically."""
        write_npz(
            path,
            attacks=np.array(self.attacks),
            **{name: getattr(self, name) for name in COLUMN},
            labels=self.labels,
            index=self.index,
            checkpoint=np.array(self.checkpoint),
            settings=np.array(self.settings, str),
        )

    @classmethod
    def load(cls, path: Path) -> "Verdicts":
        """Read a table written by `save`."""
        with np.load(path) as arrays:
            rest = [arrays[name] for name in (*COLUMN, "labels", "index")]
            said = [str(text) for text in arrays["settings"]] if "settings" in arrays else []
            return cls([str(name) for name in arrays["attacks"]], *rest, str(arrays["checkpoint"]), said)

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

    def costs(self) -> dict[str, dict[str, float]]:
        """What each attack cost an example: gradient evaluations and forward passes (see `Column`)."""
        counts = zip(self.attacks, self.gradient_evaluations, self.forward_passes, strict=True)
        n = len(self.labels)
        return {name: {"gradient_evaluations": g / n, "forward_passes": f / n} for name, g, f in counts}

    def breaks(self, attack: str) -> list[int]:
        """The examples that `attack` breaks, by their `index`."""
        return self.index[self.broken[self.attacks.index(attack)]].tolist()

    def first_breaking(self) -> list[str | None]:
        """For each example the first attack in table order that breaks it, None where all fail."""
        first = self.broken.argmax(0)
        return [self.attacks[a] if broken else None for a, broken in zip(first, self.broken.any(0), strict=True)]
