"""Fashion-MNIST (Xiao et al. 2017) in the idx format of MNIST: 60,000 + 10,000 grey images of 28x28."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.download import Remote, fetch_all
from pipeline.data.members import Member, named
from pipeline.data.partition import Labelled, keep_test
from pipeline.data.store import Arrays
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.params import Data

_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
# Debian's package dataset-fashion-mnist; unpacked, its files are those of the URLs, byte for byte.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# The authors' server (README of zalandoresearch/fashion-mnist, whose MD5 sums belong to the same files).
_SERVER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
REMOTES = [
    Remote(f"{_SERVER}/{name}.gz", sha256)
    for name, sha256 in {
        "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }.items()
]


def load(settings: "Data", source: Path | None) -> Arrays:
    """Fashion-MNIST from a folder or archive of idx files, packed or not; from Debian's or the URLs without one."""
    if source is None:
        source = DEBIAN if DEBIAN.is_dir() else fetch_all(REMOTES, settings.name)
    pairs = [(f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")]
    files = named(source, [name for pair in pairs for name in pair])
    train, test = (_labelled(files[images], files[labels]) for images, labels in pairs)
    return keep_test(train, test, _CLASSES, settings.split)


def _labelled(images: Member, labels: Member) -> Labelled:
    pixels, targets = _array(images, 3), _array(labels, 1)
    if len(pixels) != len(targets):
        raise UserError(f"{labels.place}: holds {len(targets)} labels, but there are {len(pixels)} images")
    if targets.max(initial=0) >= len(_CLASSES):
        raise UserError(f"{labels.place}: holds the label {targets.max()}; the classes are 0 to {len(_CLASSES) - 1}")
    return pixels[:, None], targets.astype(np.int64)


def _array(file: Member, dimensions: int) -> np.ndarray:
    """The idx format: two zero bytes, 8 for uint8, the number of dimensions, their sizes (big-endian), the values."""
    content, head = file.content, 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{file.place}: is no idx file of {dimensions}-dimensional uint8 values")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) - head != math.prod(shape):
        raise UserError(f"{file.place}: holds {len(content) - head} values where its header says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
