"""Data sets by name; each becomes the same arrays."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.data import digits
from pipeline.data.store import Arrays

if TYPE_CHECKING:
    from pipeline.params import Data

SOURCES: dict[str, Callable[["Data"], Arrays]] = {"digits": digits.load}
