"""Transfer tables: which model's images, and which model's generator, break which other model.

A cell of the matrix is named METHOD-SEED. Accuracies are read from the table, never stored beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import write_npz

GENERATOR = "generator"
COLUMNS = ["attack", "source", "target", "accuracy"]


@dataclass(frozen=True)
class Cross:
    """Models of one method under attacks made with models of another: mean accuracy in %, and of how many pairs.

    `own`, `own_pairs`: the same for pairs of a model with itself, which `mean` and `pairs` leave out.
    A mean over no pairs is None.
    """

    mean: float | None
    pairs: int
    own: float | None
    own_pairs: int


@dataclass(frozen=True)
class Transfer:
    """`broken`: bool (attacks, sources, targets, N), the target's verdicts on what the attack made with the source.

    `made`: bool (attacks, sources), False where there is no such attack (a generator of a method that
    has none); `broken` is False there. The attack `generator` sees the target's gradients, all
    others those of the source alone; where source and target are the same model they are white-box
    attacks. `labels`, `index`: (N,), as in `Verdicts`.
    """

    attacks: list[str]
    sources: list[str]
    targets: list[str]
    broken: np.ndarray
    made: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    @classmethod
    def join(
        cls, found: Mapping[tuple[str, str], np.ndarray], cells: Sequence[str], labels: np.ndarray, index: np.ndarray
    ) -> "Transfer":
        """A table of verdicts (targets, N) by (attack, source), over all `cells` as sources and as targets."""
        attacks = list(dict.fromkeys(attack for attack, _ in found))
        nothing = np.zeros((len(cells), len(labels)), bool)
        broken = [[found.get((attack, source), nothing) for source in cells] for attack in attacks]
        made = [[(attack, source) in found for source in cells] for attack in attacks]
        return cls(attacks, list(cells), list(cells), np.array(broken), np.array(made), labels, index)

    def save(self, path: Path) -> None:
        """Write the table as .npz, atomically."""
        names = {name: np.array(getattr(self, name)) for name in ("attacks", "sources", "targets")}
        write_npz(path, **names, broken=self.broken, made=self.made, labels=self.labels, index=self.index)

    @classmethod
    def load(cls, path: Path) -> "Transfer":
        """Read a table written by `save`."""
        with np.load(path) as arrays:
            names = [[str(name) for name in arrays[kind]] for kind in ("attacks", "sources", "targets")]
            return cls(*names, *(arrays[name] for name in ("broken", "made", "labels", "index")))

    def accuracies(self) -> np.ndarray:
        """Accuracy of each target in %: (attacks, sources, targets), NaN where nothing was made."""
        return np.where(self.made[:, :, None], 100 * (1 - self.broken.mean(3)), np.nan)

    def broken_by_others(self, target: str) -> np.ndarray:
        """Examples of `target` (METHOD-SEED) that images made on some other model break: bool (N,).

        The generators are left out: they use the target's gradients. All False where the
        target is the only model.
        """
        gradient = np.array([attack != GENERATOR for attack in self.attacks])
        other = np.array([source != target for source in self.sources])
        return self.broken[:, :, self.targets.index(target)][self.made & np.outer(gradient, other)].any(0)

    def rows(self) -> list[dict[str, Any]]:
        """The table as flat rows for CSV: one an (attack, source, target) that was made."""
        accuracies = self.accuracies()
        return [
            dict(zip(COLUMNS, (attack, source, target, float(accuracies[a, s, t])), strict=True))
            for a, attack in enumerate(self.attacks)
            for s, source in enumerate(self.sources)
            for t, target in enumerate(self.targets)
            if self.made[a, s]
        ]

    def crosses(self, attack: str) -> dict[str, dict[str, Cross]]:
        """Means over pairs of seeds: source's method -> target's method -> `Cross`; methods that made nothing lack."""
        accuracies, made = self.accuracies()[self.attacks.index(attack)], self.made[self.attacks.index(attack)]
        values: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for s, source in enumerate(self.sources):
            for t, target in enumerate(self.targets):
                if made[s]:
                    others, own = values.setdefault(method_of(source), {}).setdefault(method_of(target), ([], []))
                    (own if source == target else others).append(float(accuracies[s, t]))
        return {s: {t: _cross(*lists) for t, lists in row.items()} for s, row in values.items()}


def cell_name(method: str, seed: int) -> str:
    """METHOD-SEED."""
    return f"{method}-{seed}"


def method_of(cell: str) -> str:
    """The method of a cell's name."""
    return cell.rpartition("-")[0]


def markdown(table: Transfer, heading: str) -> str:
    """One Markdown table an attack, methods by methods, and what is read there."""
    lines = [
        heading,
        "",
        f"Accuracy in % of the column's models on {len(table.labels)} test images that were attacked with the row's"
        " models: the lower, the better the attack transfers. Means over pairs of models, their number in brackets;"
        " `own`: models attacked with themselves (white-box), which the mean beside it leaves out.",
    ]
    for attack in table.attacks:
        crosses = table.crosses(attack)
        targets = list(dict.fromkeys(map(method_of, table.targets)))
        body = [[source, *(_cell(row[target]) for target in targets)] for source, row in crosses.items()]
        lines += ["", f"### {attack}", ""]
        if attack == GENERATOR:
            lines += [
                "The row's trained generators, which see the gradients of the column's models (`own`: of the model that"
                " they were trained with). An image is broken if any of its samples is misclassified.",
                "",
            ]
        header = ["made with", *targets]
        ruler = ["---"] + ["---:"] * len(targets)
        lines += ["| " + " | ".join(cells) + " |" for cells in (header, ruler, *body)]
    return "\n".join(lines) + "\n"


def _cell(cross: Cross) -> str:
    parts = [] if cross.mean is None else [f"{cross.mean:.1f} ({cross.pairs})"]
    return ", ".join(parts + ([] if cross.own is None else [f"own {cross.own:.1f} ({cross.own_pairs})"]))


def _cross(others: list[float], own: list[float]) -> Cross:
    means = [sum(values) / len(values) if values else None for values in (others, own)]
    return Cross(means[0], len(others), means[1], len(own))
