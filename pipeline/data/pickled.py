"""Reading pickled batches of arrays without running code: a pickle can name any function and have it called.

Here it may name the few that Python 2 and 3 need for lists, numbers, text and NumPy arrays, and what is
called in their place are the stand-ins below, which only remember their arguments.
"""

import io
from pickle import Unpickler, UnpicklingError
from typing import Any

import numpy as np

from pipeline.data.members import Member
from pipeline.errors import UserError


class _Remembered:
    """What a pickle builds in the place of an array or of an array's type."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encode(text: str, _: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Remembered,
    ("numpy._core.multiarray", "_reconstruct"): _Remembered,
    ("numpy", "ndarray"): None,  # an argument of the former, not called
    ("numpy", "dtype"): _Remembered,
    ("_codecs", "encode"): _encode,
}


class _Reader(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise UnpicklingError(f"it names {module}.{name}, which is not run")
        return _STAND_INS[module, name]


def read(file: Member) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3: keys as text, uint8 arrays as arrays, all else as it is.

    `UserError` where it names anything but arrays, or is damaged.
    """
    try:
        content = _Reader(io.BytesIO(file.content), encoding="bytes").load()
        return {_text(key): _array(v) if isinstance(v, _Remembered) else v for key, v in content.items()}
    except Exception as error:  # pickle raises whatever a damaged file leads it to
        raise UserError(f"{file.place}: cannot be read as pickled arrays ({error})") from None


def texts(values: Any) -> list[str]:
    """A pickled list of names."""
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _array(remembered: _Remembered) -> np.ndarray:
    """What `numpy.ndarray.__setstate__` would build from (version, shape, type, order, bytes)."""
    _, shape, kind, fortran, content = remembered.state
    if _text(kind.arguments[0]) != "u1" or fortran:
        raise ValueError("an array is not of type uint8 in C order")
    return np.frombuffer(content, np.uint8).reshape(shape)
