"""The common form of every data set on disk: uint8 images, labels, and where each example belongs.

A prepared folder holds `train.npz`, `validation.npz` and `test.npz` (images uint8
(N, C, H, W), labels int64 (N,), index int64 (N,): the example's place in the source)
and `meta.json` (counts, classes, shape, content hash). Training code opens the
first two only.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import read_json, write_json, write_npz


@dataclass(frozen=True)
class Arrays:
    """A whole data set: images uint8 (N, C, H, W), labels (N,), the split's indices, class names."""

    images: np.ndarray
    labels: np.ndarray
    parts: dict[str, np.ndarray]
    classes: list[str]


@dataclass(frozen=True)
class Split:
    """One part of a data set on a device: y and index int64 (N,), and the images x (N, C, H, W).

    x is float32 in [0, 1], or uint8 as stored where the part is large and read in batches (`images`).
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def head(self, count: int) -> "Split":
        """The first `count` examples."""
        return Split(self.x[:count], self.y[:count], self.index[:count])

    def images(self, rows: Tensor) -> Tensor:
        """The images of `rows` in [0, 1]; what is stored as uint8 becomes float32 here, so batch by batch."""
        return _unit(self.x[rows])


def save(
    arrays: Arrays, folder: Path, name: str, title: str | None = None, expected: str | None = None
) -> dict[str, Any]:
    """Write a prepared folder and return its meta, which holds `title` where it says more than `name`.

    `UserError` where the content hash is not `expected`. All is written beside `folder`, which
    is replaced at the very end; `meta.json` comes last, so a folder with it is complete.
    """
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        meta = _write(arrays, temporary, {"name": name} | ({"title": title} if title not in (None, name) else {}))
        if expected not in (None, meta["sha256"]):
            raise UserError(f"params.yaml: data.sha256: {name} has the content hash {meta['sha256']}, not {expected}")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return meta


def _write(arrays: Arrays, folder: Path, names: dict[str, str]) -> dict[str, Any]:
    content = hashlib.sha256()
    for part, index in arrays.parts.items():
        images, labels = arrays.images[index], arrays.labels[index]
        for array in (images, labels, index):
            content.update(memoryview(np.ascontiguousarray(array)).cast("B"))
        write_npz(folder / f"{part}.npz", images=images, labels=labels, index=index)
    meta = names | {
        "shape": list(arrays.images.shape[1:]),
        "classes": arrays.classes,
        "counts": {part: len(index) for part, index in arrays.parts.items()},
        "sha256": content.hexdigest(),
    }
    write_json(folder / "meta.json", meta)
    return meta


def load_meta(folder: Path) -> dict[str, Any]:
    """The description of a prepared folder."""
    path = folder / "meta.json"
    if not path.exists():
        raise UserError(f"{folder}: no prepared data set here; run `dvc repro prepare` first")
    return read_json(path)


def load_pixels(folder: Path, part: str, device: torch.device | str = "cpu") -> Split:
    """One part ("train", "validation" or "test") on `device`, images uint8 as stored."""
    with np.load(folder / f"{part}.npz") as arrays:
        return Split(*(torch.from_numpy(arrays[name]).to(device) for name in ("images", "labels", "index")))


def load_split(folder: Path, part: str, device: torch.device | str = "cpu") -> Split:
    """One part ("train", "validation" or "test") on `device`, images float32 in [0, 1]."""
    stored = load_pixels(folder, part, device)
    return Split(_unit(stored.x), stored.y, stored.index)


def _unit(x: Tensor) -> Tensor:
    """uint8 becomes float32 in [0, 1]; floating point stays as it is."""
    return x if x.is_floating_point() else x.float() / 255
