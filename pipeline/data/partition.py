"""Which image is in which part: stratified by class, a function of the seed of the split alone."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.store import Arrays
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Split

Labelled = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,)


def keep_test(train: Labelled, test: Labelled, classes: list[str], split: "Split") -> Arrays:
    """A source that has a test set of its own: validation images come out of its training set only.

    `split.test` images of the test set are a stratified subset; null keeps all of it. An
    example's index is its place in the training set, or behind it for the test set.
    """
    images, labels = (np.concatenate(pair) for pair in zip(train, test, strict=True))
    first = len(train[1])
    own = np.arange(first, len(labels))
    kept = own if split.test in (None, len(own)) else _take(own, labels, split.test, split.seed, "test")[1]
    return Arrays(images, labels, _parts(np.arange(first), kept, labels, split), classes)


def split_test(source: Labelled, classes: list[str], split: "Split") -> Arrays:
    """A source without a test set: `split.test` images are split off first, validation images out of the rest."""
    images, labels = source
    if split.test is None:
        raise UserError("params.yaml: data.split.test: the source has no test set of its own; say how many images")
    rest, test = _take(np.arange(len(labels)), labels, split.test, split.seed, "test")
    return Arrays(images, labels, _parts(rest, test, labels, split), classes)


def _parts(rest: np.ndarray, test: np.ndarray, labels: np.ndarray, split: "Split") -> dict[str, np.ndarray]:
    train, validation = _take(rest, labels, split.validation, split.seed, "validation")
    if split.train not in (None, len(train)):
        train = _take(train, labels, split.train, split.seed, "train")[1]
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}


def _take(index: np.ndarray, labels: np.ndarray, count: int, seed: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    """`index` without a stratified choice of `count`, and that choice, both in random order."""
    from sklearn.model_selection import train_test_split

    try:
        rest, taken = train_test_split(index, test_size=count, random_state=seed, stratify=labels[index])
    except ValueError as error:
        wish = f"{count} of {len(index)} images cannot be chosen with every class in its share"
        raise UserError(f"params.yaml: data.split.{part}: {wish} ({str(error).rstrip('.')})") from None
    return rest, taken
