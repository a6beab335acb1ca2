"""Resumable state of a training run.

It is private to one fingerprint of everything that decides the run's bits (params,
data, code, versions, device, threads); the fingerprint stands inside the file and is
checked, so a changed run never continues an old one.
"""

import io
from pathlib import Path
from typing import Any

import torch

from pipeline.files import write_bytes


def save_state(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Write resumable state atomically, with its fingerprint inside."""
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, **state}, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state in `path`, or None where there is none or it belongs to another fingerprint.

    The file is our own, in the work folder, and holds random-generator states that
    the weights-only reader does not know.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=False)
    return state if state["fingerprint"] == fingerprint else None
