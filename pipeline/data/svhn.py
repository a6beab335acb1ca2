"""SVHN (Netzer et al. 2011), cropped digits: 73,257 + 26,032 colour images of 32x32 in MATLAB files."""

import io
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

# The authors' server; the sums are those of the files with torchvision's MD5 sums
# e26dedcc434d2e4c54c9b2d4a06d8373 and eb5a983be6a315427106f1b164d9cef3.
_SERVER = "http://ufldl.stanford.edu/housenumbers"
REMOTES = [
    Remote(f"{_SERVER}/train_32x32.mat", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    Remote(f"{_SERVER}/test_32x32.mat", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
]


def load(settings: "Data", source: Path | None) -> Arrays:
    """SVHN's training and test set (not `extra`) from a folder or archive; from the URLs without one."""
    files = named(source or fetch_all(REMOTES, settings.name), ["train_32x32.mat", "test_32x32.mat"])
    train, test = (_labelled(file) for file in files.values())
    return keep_test(train, test, [str(digit) for digit in range(10)], settings.split)


def _labelled(file: Member) -> Labelled:
    """X (32, 32, 3, N) uint8 and y (N, 1), where the digit 0 has the label 10."""
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(file.content), variable_names=["X", "y"])
        images, labels = content["X"], content["y"]
    except Exception as error:  # scipy's reader raises whatever a damaged file leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file.place}: cannot be read as a MATLAB file with X and y ({reason})") from None
    labels = labels.ravel().astype(np.int64)
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.shape[3:] != labels.shape:
        raise UserError(
            f"{file.place}: X is {images.dtype} {images.shape} with {len(labels)} labels; expected uint8 (32, 32, 3, N)"
        )
    if not ((labels >= 1) & (labels <= 10)).all():
        raise UserError(f"{file.place}: y holds labels outside of 1 to 10")
    return images.transpose(3, 2, 0, 1), labels % 10
