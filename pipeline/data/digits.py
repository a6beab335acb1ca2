"""The embedded default: scikit-learn's 8x8 handwritten digits (UCI Optical Recognition, test part)."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.partition import split_test
from pipeline.data.store import Arrays

if TYPE_CHECKING:
    from pipeline.params import Data


def load(settings: "Data") -> Arrays:
    """1,797 grey images of ten classes, split into train, validation and test, stratified by class.

    The source has 17 grey levels (0 to 16); they are spread over 0 to 255. Sizes and
    seed of the split come from `settings.split`.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = source.target.astype(np.int64)
    return split_test((images, labels), [str(digit) for digit in range(10)], settings.split)
