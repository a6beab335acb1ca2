"""The common form of every data set on disk: uint8 images, labels, and where each example belongs.

A prepared folder holds `train.npz`, `validation.npz` and `test.npz` (images uint8
(N, C, H, W), labels int64 (N,), index int64 (N,): the example's place in the source)
and `meta.json` (counts, classes, shape, content hash). Training code opens the
first two only.
"""

import hashlib
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
    """One part of a data set on a device: x float32 in [0, 1] (N, C, H, W), y and index int64 (N,)."""

    x: Tensor
    y: Tensor
    index: Tensor

    def head(self, count: int) -> "Split":
        """The first `count` examples."""
        return Split(self.x[:count], self.y[:count], self.index[:count])


def save(arrays: Arrays, folder: Path, name: str) -> dict[str, Any]:
    """Write a prepared folder; `meta.json` comes last, so a folder with it is complete. Returns the meta."""
    (folder / "meta.json").unlink(missing_ok=True)
    content = hashlib.sha256()
    for part, index in arrays.parts.items():
        images, labels = arrays.images[index], arrays.labels[index]
        for array in (images, labels, index):
            content.update(np.ascontiguousarray(array).tobytes())
        write_npz(folder / f"{part}.npz", images=images, labels=labels, index=index)
    meta = {
        "name": name,
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


def load_split(folder: Path, part: str, device: torch.device | str = "cpu") -> Split:
    """One part ("train", "validation" or "test") as tensors on `device`."""
    with np.load(folder / f"{part}.npz") as arrays:
        images = torch.from_numpy(arrays["images"]).to(device)
        labels = torch.from_numpy(arrays["labels"]).to(device)
        index = torch.from_numpy(arrays["index"]).to(device)
    return Split(images.float() / 255, labels, index)
