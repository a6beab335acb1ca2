"""Whether samples of a distribution explore the set better than PGD with restarts: the numbers, judged and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparison.statistics import FEWEST, Summary, t_interval
from pipeline.labels import method_label

PGD = "pgd"
UNIFORM = "uniform"
# Each measure of a `Description` (but the entropy), and what people call it.
MEASURES = {
    "seen_diversity": "variance",
    "seen_cosine": "cosine",
    "classes": "classes",
    "adversarial_loss": "mean loss",
    "worst_loss": "largest loss",
    "fooled": "fooled, %",
    "broken": "broken, %",
    "diversity": "variance, unclipped",
    "cosine": "cosine, unclipped",
}
COLUMNS = ["model", "source", "seed", *MEASURES, "entropy"]
PERCENT = ("fooled", "broken")
EXPLORING = {"seen_diversity": 1, "seen_cosine": -1, "classes": 1}  # more or less is better
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A source minus PGD on the same models: mean over seeds, and its t interval, None where there is none."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def side(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it contains 0, None without an interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return int(low > 0) - int(high < 0)


def source_label(source: str) -> str:
    """A source for people."""
    return {PGD: "PGD restarts", UNIFORM: "uniform noise"}.get(source, method_label(source))


def scaled(measure: str, value: float) -> float:
    """A measure as people read it: shares in %."""
    return 100 * value if measure in PERCENT else value


def summaries(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Summary]]:
    """(model, source) -> measure -> mean and deviation over seeds, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["source"]), []).append(row)
    return {
        key: {m: Summary.of({row["seed"]: scaled(m, row[m]) for row in group}) for m in MEASURES}
        for key, group in groups.items()
    }


def differences(rows: Sequence[Row], confidence: float) -> dict[tuple[str, str], dict[str, Difference]]:
    """(model, source other than PGD) -> measure -> its difference to PGD with restarts, paired by seed."""
    table = summaries(rows)
    return {
        (model, source): {m: _difference(mine[m], table[model, PGD][m], confidence) for m in MEASURES}
        for (model, source), mine in table.items()
        if source != PGD
    }


def _difference(one: Summary, other: Summary, confidence: float) -> Difference:
    pairs = [value - other.runs[seed] for seed, value in one.runs.items()]
    return Difference(sum(pairs) / len(pairs), t_interval(pairs, confidence))


def verdict(found: Mapping[str, Difference]) -> str:
    """Whether a source explores better than PGD: more variance, lower cosine and more classes, each beyond chance."""
    sides = [found[measure].side for measure in EXPLORING]
    good = [None if side is None else side * sign for side, sign in zip(sides, EXPLORING.values(), strict=True)]
    if None in good:
        return "undecided (no interval)"
    if good == [1, 1, 1]:
        return "supported"
    if good == [-1, -1, -1]:
        return "not supported; PGD with restarts explores better by all three"
    better, worse = good.count(1), good.count(-1)
    return f"not supported (better by {better}, worse by {worse}, not told apart by {3 - better - worse} of the three)"


def markdown(
    data: str, rows: Sequence[Row], samples: int, images: int, confidence: float, absent: Sequence[str]
) -> str:
    """The report: what was measured on each model, the differences to PGD, and a sentence for each source.

    `data`: what people call the data; `images`: how many of its test images; `absent`: methods without a source.
    """
    table, paired = summaries(rows), differences(rows, confidence)
    seeds = len({row["seed"] for row in rows})
    parts = ["# What a distribution knows", _definitions(f"{images} test images of {data}", samples, seeds)]
    if absent:
        names = ", ".join(map(method_label, absent))
        parts.append(f"Left out, because the matrix does not train it: {names}.")
    body = [[*_names(key), *map(_summary, values.values())] for key, values in table.items()]
    parts.append(_table(body))
    parts.append(
        f"Difference to PGD with restarts on the same classifiers, paired by seed, with its {100 * confidence:.4g}%"
        " t interval over the seeds (none with fewer than three, or where all differ alike); bold where it excludes 0."
        " Not corrected for the number of intervals."
    )
    parts.append(_table([[*_names(key), *map(_said, found.values())] for key, found in paired.items()]))
    judged = [sentence(*key, found) for key, found in paired.items() if key[1] != UNIFORM]
    parts += ["\n".join(f"- {said}" for said in judged), _CRITERION]
    return "\n\n".join(parts) + "\n"


def sentence(model: str, source: str, found: Mapping[str, Difference]) -> str:
    """What was measured of one source against PGD on the classifiers of `model`, in words."""
    explored = ", ".join(f"{MEASURES[m]} {_plain(found[m])}" for m in EXPLORING)
    free = ", ".join(f"{m} {_plain(found[key])}" for m, key in (("variance", "diversity"), ("cosine", "cosine")))
    harm = ", ".join(
        f"{MEASURES[m]} {_plain(found[m])} ({_SIDES[found[m].side]})"
        for m in ("adversarial_loss", "worst_loss", "fooled", "broken")
    )
    return (
        f"That {source_label(source)} explores better than PGD with restarts on the classifiers of"
        f" {method_label(model)} is {verdict(found)}: {explored} (unclipped: {free}). Harm against PGD's: {harm}."
    )


_SIDES = {-1: "less", 0: "not told apart", 1: "more", None: "no interval"}
_CRITERION = (
    "Explores better: more variance, lower cosine and more classes, each with an interval that excludes 0. Variance"
    " says nothing of harm: see the rows of uniform noise."
)


def _definitions(images: str, samples: int, seeds: int) -> str:
    spread = " ± sample standard deviation" if seeds >= FEWEST else ""
    spread += f" over {seeds} seeds" if seeds > 1 else " of one seed"
    return (
        f"{samples} samples of every source for each of {images}; means over images, then mean"
        f"{spread}. Of the samples of an image: variance of each pixel of delta / eps"
        " (averaged over pixels), mean cosine similarity of two perturbations, number of distinct predicted classes,"
        " mean and largest cross-entropy, share that is misclassified (fooled), and whether any is (broken). Variance"
        " and cosine are those of clip(x + delta, 0, 1) - x, which the model sees; unclipped: of delta itself, which"
        " for PGD is the same, because it clips at every step. A generator was trained with its own classifiers, so"
        " each distribution is also measured on the classifiers of its own method."
    )


def _names(key: tuple[str, str]) -> list[str]:
    return [method_label(key[0]), source_label(key[1])]


def _summary(summary: Summary) -> str:
    spread = "" if summary.std is None else f" ± {_number(summary.std)}"
    return _number(summary.mean) + spread


def _said(difference: Difference) -> str:
    text = _plain(difference)
    return f"**{text}**" if difference.side else text


def _plain(difference: Difference) -> str:
    mean = f"{difference.mean:+z.3g}"
    if difference.interval is None:
        return mean
    return f"{mean} [{difference.interval[0]:+z.3g}, {difference.interval[1]:+z.3g}]"


def _number(value: float) -> str:
    return f"{round(value, 9):z.3g}"  # deviations of equal numbers are rounding


def _table(body: Sequence[Sequence[str]]) -> str:
    header = ["classifiers", "source", *MEASURES.values()]
    ruler = ["---", "---"] + ["---:"] * len(MEASURES)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *body))
