"""Atomic, deterministic files: a reader sees the old content or the new, never half."""

import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically (temporary sibling, fsync, rename).

    Raises `UserError` where the system refuses (disk full, read-only, no permission); what
    `path` held before is untouched. Temporary siblings of processes that were killed are removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the file that was there is untouched" if path.exists() else ""
        raise UserError(f"{path}: cannot be written: {error.strerror or error}{kept}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that no longer exist left of their writing to `path`."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError, OverflowError, ValueError):
            try:
                os.kill(int(temporary.name.split(".")[-2]), 0)
            except ProcessLookupError:
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: sorted by construction order, two-space indent, final newline.

    NaN and infinity are refused (`ValueError`): they are not JSON.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text())


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """Write rows as CSV atomically; `None` becomes an empty cell, floats keep 6 significant digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    write_text(path, buffer.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file as one dictionary of strings a row."""
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def write_npz(path: Path, **arrays: Any) -> None:
    """Write NumPy arrays atomically, as `numpy.savez` does; equal arrays give equal bytes.

    Entries carry no clock, and every field of their headers is fixed here: NumPy leaves some to
    Python's zipfile, where they differ between 3.11.2 and 3.11.7.
    """
    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, values in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asanyarray(values), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o600 << 16
            archive.writestr(info, entry.getvalue())
    write_bytes(path, buffer.getvalue())


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_code(root: Path, *parts: str) -> str:
    """SHA-256 (hex) over the Python sources named by `parts` (files or folders under `root`)."""
    sources = sorted({f for part in parts for f in _python_files(root / part)})
    return digest([[str(f.relative_to(root)), digest_file(f)] for f in sources])


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
