"""Resumable state of a training run.

It is private to one fingerprint of everything that decides the run's bits (params,
data, code, versions, device, threads). The file's first line names its format, that
fingerprint and the SHA-256 of the rest; both are checked before anything is read, so a
changed run never continues an old one and half a file is never taken for a whole one.
"""

import hashlib
import io
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pipeline.files import write_bytes

_FORMAT = "adt-training-state-1"


def save_state(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Write resumable state atomically; `UserError` where the disk is full, the state before is then kept."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_bytes(path, f"{_FORMAT} {fingerprint} {hashlib.sha256(content).hexdigest()}\n".encode() + content)


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state in `path`, on the CPU, or None where there is none that can be used.

    A file that is damaged, is of another run or holds objects is named on stderr with the
    reason; code in it is not run.
    """
    if not path.exists():
        return None
    header, _, content = path.read_bytes().partition(b"\n")
    words = header.decode(errors="replace").split(" ")
    if len(words) != 3 or words[0] != _FORMAT:
        reason = "is not a training state of this version"
    elif words[1] != fingerprint:
        reason = "belongs to a run with other parameters, data, code or machine"
    elif words[2] != hashlib.sha256(content).hexdigest():
        reason = "is damaged (truncated or changed)"
    else:
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except UnpicklingError:
            reason = "holds more than tensors and plain values"
    print(f"warning: {path} {reason}; training starts from the beginning", file=sys.stderr, flush=True)
    return None
