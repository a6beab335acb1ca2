"""Any folder or archive of PNG or JPEG images in class sub-folders.

Either `CLASS/IMAGE`, of which a test set is split off, or `train/CLASS/IMAGE` and
`test/CLASS/IMAGE`; folders around all of these, hidden files and files of other kinds do not matter.
"""

import io
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.members import Member, members
from pipeline.data.partition import Labelled, keep_test, split_test
from pipeline.data.store import Arrays
from pipeline.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.params import Data

_KINDS = (".png", ".jpg", ".jpeg")
_MODES = {"L": 1, "RGB": 3}
_COLOUR = {1: "grey", 3: "colour"}
_LAYOUT = "expected CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE"


def load(settings: "Data", source: Path | None) -> Arrays:
    """The images in the order of their names, so that a folder and an archive of it give the same arrays."""
    assert source is not None  # params demand a folder or an archive
    sets, classes = read(settings, source)
    if set(sets) == {""}:
        return split_test(sets[""], classes, settings.split)
    return keep_test(sets["train"], sets["test"], classes, settings.split)


def read(settings: "Data", source: Path) -> tuple[dict[str, Labelled], list[str]]:
    """The sets as they lie in the source, "train" and "test" or one called "", and the names of the classes."""
    pictures: dict[PurePosixPath, np.ndarray] = {}
    for member in members(source, _is_image):
        if member.path in pictures:
            raise UserError(f"{member.place}: is there twice")
        pictures[member.path] = _pixels(member, settings, next(iter(pictures.values()), None))
    parts = _parts(source, list(pictures))
    classes = _classes(source, parts)
    names = [part for part in ("train", "test", "") if part in parts]
    return {part: _labelled(parts[part], pictures, classes) for part in names}, classes


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _KINDS and not hidden


def _pixels(member: Member, settings: "Data", first: np.ndarray | None) -> np.ndarray:
    """One image as uint8 (C, H, W), alike the first one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(member.content), formats=["PNG", "JPEG"]) as image:
            image.load()
            expected = settings.channels if first is None else len(first)
            channels = _channels(member, image, expected)
            values = np.asarray(_square(image, settings.resize), np.uint8)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{member.place}: cannot be read as an image (neither PNG nor JPEG)") from None
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise UserError(f"{member.place}: cannot be read as an image ({type(error).__name__}: {error})") from None
    height, width = values.shape[:2]
    wanted = (width, width) if first is None else first.shape[1:]
    if (height, width) != wanted:
        size = "square" if first is None else f"all {wanted[1]}x{wanted[0]}, as the first one"
        raise UserError(f"{member.place}: is {width}x{height}; images must be {size}, or set data.resize")
    return np.ascontiguousarray(values.reshape(height, width, channels).transpose(2, 0, 1))


def _channels(member: Member, image: "Image", expected: int | None) -> int:
    if image.mode not in _MODES:
        raise UserError(f"{member.place}: has pixels of kind {image.mode}; allowed: 8-bit grey (L) and colour (RGB)")
    channels = _MODES[image.mode]
    if expected not in (None, channels):
        raise UserError(f"{member.place}: is {_COLOUR[channels]} where {_COLOUR[expected]} is expected (data.channels)")
    return channels


def _square(image: "Image", side: int | None) -> "Image":
    """The central square scaled to `side` pixels (bicubic, antialiased); the image itself without `side`."""
    from PIL import Image

    if side is None or image.size == (side, side):
        return image
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    # Cropped first: `resize` with a box looks at the pixels around it, too.
    square = image.crop((left, top, left + edge, top + edge))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def _parts(source: Path, paths: list[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """The sorted paths of each part: "train" and "test", or "" for a source of one level."""
    if not paths:
        raise UserError(f"{source}: no PNG or JPEG images found; {_LAYOUT}")
    around = os.path.commonpath([path.parent.parent for path in paths])
    parts: dict[str, list[PurePosixPath]] = {}
    for path in sorted(paths):
        inner = path.relative_to(around).parts
        parts.setdefault("/".join(inner[:-2]) if len(inner) > 1 else "no class", []).append(path)
    if set(parts) not in ({""}, {"train", "test"}):
        odd = min((part for part in parts if part not in ("train", "test")), key=lambda part: len(parts[part]))
        raise UserError(f"{source}: {parts[odd][0]}: wrong place for an image; {_LAYOUT}")
    return parts


def _classes(source: Path, parts: dict[str, list[PurePosixPath]]) -> list[str]:
    named = {part: {path.parent.name for path in paths} for part, paths in parts.items()}
    everywhere = set.union(*named.values())
    for part, names in named.items():
        if lacking := sorted(everywhere - names):
            raise UserError(f"{source}: {part}/ has no images of the class {lacking[0]!r}")
    if len(everywhere) < 2:
        raise UserError(f"{source}: only one class ({everywhere.pop()!r}); {_LAYOUT}")
    return sorted(everywhere)


def _labelled(paths: list[PurePosixPath], pictures: dict[PurePosixPath, np.ndarray], classes: list[str]) -> Labelled:
    """Images and labels of one part; what was put together leaves `pictures`."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[path.parent.name] for path in paths], np.int64)
    return np.stack([pictures.pop(path) for path in paths]), labels
