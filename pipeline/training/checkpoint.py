"""Model files for others, and resumable state for ourselves.

A model file is safetensors: tensors only, safe to open, byte-identical for equal
weights. Resumable state is private to one fingerprint of everything that decides
its bits (params, data, code, versions, device, threads); the fingerprint stands
inside the file and is checked, so a changed run never continues an old one.
"""

import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.files import write_bytes


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a state dict as safetensors, atomically; tensors are copied to the CPU."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}
    write_bytes(path, safetensors.torch.save(on_cpu))


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a file of `save_weights` into `module`; names and shapes must match exactly."""
    module.load_state_dict(safetensors.torch.load(path.read_bytes()), strict=True)


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
