"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32.

The binary version is downloaded and read; the pickled Python version is read, too, if that is what
the user has, without running what a pickle may contain.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import pickled
from pipeline.data.download import Remote, fetch
from pipeline.data.members import Member, named
from pipeline.data.partition import Labelled, keep_test
from pipeline.data.store import Arrays
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Data

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Binary:
    """The binary version: records of `labels` label bytes, of which the last counts, and the pixels."""

    train: tuple[str, ...]
    test: str
    names: str
    labels: int

    def records(self, file: Member) -> Labelled:
        """Images and labels of one file."""
        size = self.labels + _PIXELS
        if not file.content or len(file.content) % size:
            raise UserError(f"{file.place}: truncated: {len(file.content)} bytes are no whole records of {size}")
        values = np.frombuffer(file.content, np.uint8).reshape(-1, size)
        return values[:, self.labels :].reshape(-1, *_SHAPE), values[:, self.labels - 1].astype(np.int64)

    def classes(self, file: Member) -> list[str]:
        """The names of the classes, one a line."""
        return file.content.decode(errors="replace").split()


@dataclass(frozen=True)
class Pickled:
    """The Python version: a dictionary with `data` (N, 3072) uint8 and the list `labels`."""

    train: tuple[str, ...]
    test: str
    names: str
    labels: str

    def records(self, file: Member) -> Labelled:
        """Images and labels of one file."""
        content = pickled.read(file)
        images, labels = content.get("data"), content.get(self.labels)
        if not isinstance(images, np.ndarray) or images.shape[1:] != (_PIXELS,):
            raise UserError(f"{file.place}: holds no array `data` of rows of {_PIXELS}")
        whole = isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)
        if not whole or len(labels) != len(images) or not labels:
            raise UserError(f"{file.place}: holds no list `{self.labels}` of {len(images)} whole numbers")
        return images.reshape(-1, *_SHAPE), np.array(labels, np.int64)

    def classes(self, file: Member) -> list[str]:
        """The names of the classes, from the file that describes the data."""
        return pickled.texts(pickled.read(file).get(self.labels.removesuffix("s") + "_names", []))


@dataclass(frozen=True)
class Layout:
    """How a data set is published."""

    remote: Remote
    classes: int
    versions: tuple[Binary, Pickled]


_NUMBERS = range(1, 6)
# The authors' server; the SHA-256 sums are those of the files whose MD5 sums the authors' page gives,
# c32a1d4ab5d03f1284b67883e8d87530 and 03b5dce01913d631647c71ecec9e9cb8.
LAYOUTS = {
    "cifar10": Layout(
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        10,
        (
            Binary(tuple(f"data_batch_{n}.bin" for n in _NUMBERS), "test_batch.bin", "batches.meta.txt", 1),
            Pickled(tuple(f"data_batch_{n}" for n in _NUMBERS), "test_batch", "batches.meta", "labels"),
        ),
    ),
    "cifar100": Layout(
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        100,
        (
            Binary(("train.bin",), "test.bin", "fine_label_names.txt", 2),
            Pickled(("train",), "test", "meta", "fine_labels"),
        ),
    ),
}


def load(settings: "Data", source: Path | None) -> Arrays:
    """CIFAR-10, or CIFAR-100 with its 100 fine labels, from a folder or archive; from the URL without one."""
    layout = LAYOUTS[settings.name]
    choices = [(*version.train, version.test, version.names) for version in layout.versions]
    files = named(source or fetch(layout.remote, settings.name), *choices)
    version = next(version for version in layout.versions if version.test in files)
    classes = version.classes(files[version.names])
    if len(classes) != layout.classes:
        raise UserError(f"{files[version.names].place}: names {len(classes)} classes, not {layout.classes}")
    sets = {name: version.records(files[name]) for name in (*version.train, version.test)}
    for name, (_, labels) in sets.items():
        if labels.max() >= len(classes):
            raise UserError(f"{files[name].place}: holds the label {labels.max()}; classes are 0 to {len(classes) - 1}")
    test = sets.pop(version.test)
    _check_counts(files[version.test], [len(labels) for _, labels in sets.values()], len(test[1]))
    images, labels = (np.concatenate(arrays) for arrays in zip(*sets.values(), strict=True))
    return keep_test((images, labels), test, classes, settings.split)


def _check_counts(test: Member, trained: list[int], tested: int) -> None:
    """There are five training images for each test image, which finds files cut between two images."""
    if sum(trained) != 5 * tested or len(set(trained)) > 1:
        shown = ", ".join(map(str, trained))
        raise UserError(
            f"{test.place}: truncated, or a file beside it: {tested} test images, but {shown} for training (5 to 1)"
        )
