"""Data sets by name; each becomes the same arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import cifar, digits, idx, image_folder, svhn
from pipeline.data.store import Arrays

if TYPE_CHECKING:
    from pipeline.params import Data

_FILES: dict[str, Callable[["Data", Path | None], Arrays]] = {
    "fashion-mnist": idx.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "svhn": svhn.load,
    "image_folder": image_folder.load,
}


def _from_files(settings: "Data") -> Arrays:
    place = settings.folder or settings.archive
    return _FILES[settings.name](settings, None if place is None else Path(place).expanduser())


SOURCES: dict[str, Callable[["Data"], Arrays]] = {"digits": digits.load} | dict.fromkeys(_FILES, _from_files)
