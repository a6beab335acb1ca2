"""How a data set travels to a node: as the archive of images it came from, or as packed arrays.

JPEG images are several times smaller than their pixels however these are packed, so an archive of images travels
as it is, with the split that was made at home; the node unpacks it with Pillow and must come to the same content
hash. Everything else travels as the prepared arrays.
"""

import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bare
from pipeline.data import store
from pipeline.data.store import Arrays
from pipeline.errors import UserError
from pipeline.files import read_json, write_bytes, write_json, write_npz

PARTS = ("train", "validation", "test")
INDEX, META, ARRAYS, ARCHIVE = "parts.npz", "meta.json", "arrays.xz", "source"


def pack(settings: Any, arrays: Arrays, meta: dict[str, Any], archive: Path | None, folder: Path) -> None:
    """Write what travels into `folder`; `archive`: the source, where it is an archive of images."""
    write_json(folder / META, meta | {"resize": settings.resize, "channels": settings.channels})
    write_npz(folder / INDEX, **{part: arrays.parts[part] for part in PARTS})
    if archive is not None:
        write_bytes(folder / f"{ARCHIVE}{''.join(archive.suffixes[-2:])}", archive.read_bytes())
        return
    buffer = io.BytesIO()
    np.savez(buffer, images=arrays.images, labels=arrays.labels)
    write_bytes(folder / ARRAYS, lzma.compress(buffer.getvalue(), preset=6))


def unpack(folder: Path, target: Path) -> None:
    """Make the prepared data set `target`/NAME of what `pack` wrote, unless it is there; `UserError` if it differs."""
    meta = read_json(folder / META)
    place = target / meta["name"]
    if (place / "meta.json").exists() and store.load_meta(place)["sha256"] == meta["sha256"]:
        return
    with np.load(folder / INDEX) as index:
        parts = {part: index[part] for part in PARTS}
    images, labels = _source(folder, meta)
    arrays = Arrays(images, labels, parts, meta["classes"])
    made = store.save(arrays, place, meta["name"], meta.get("title"))
    if made["sha256"] != meta["sha256"]:
        raise UserError(
            f"{folder}: the unpacked images have the content hash {made['sha256'][:16]}, at home {meta['sha256'][:16]}:"
            " another version of Pillow's JPEG decoder? Install the one from home"
        )


def _source(folder: Path, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels in the source's order."""
    if (folder / ARRAYS).exists():
        with np.load(io.BytesIO(lzma.decompress((folder / ARRAYS).read_bytes()))) as arrays:
            return arrays["images"], arrays["labels"]
    from pipeline.data import image_folder

    settings = bare.Settings(name=meta["name"], resize=meta["resize"], channels=meta["channels"])
    try:
        sets, _ = image_folder.read(settings, next(folder.glob(f"{ARCHIVE}.*")))
    except ModuleNotFoundError as error:
        raise UserError(f"{folder}: {error.name} is needed to unpack the images and is not installed here") from None
    images, labels = (np.concatenate([sets[part][place] for part in sets]) for place in (0, 1))
    return images, labels
