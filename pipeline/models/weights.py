"""Model files: safetensors, that is tensors only, safe to open, byte-identical for equal weights.

The authors' published `.pt` files can be read, too, without running code in them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.models.wide_resnet import released_state


def save_weights(path: Path, weights: Mapping[str, Tensor], architecture: str = "") -> None:
    """Write a state dict, atomically, with the name of its architecture; tensors are copied to the CPU."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}
    metadata = {"architecture": architecture} if architecture else None
    write_bytes(path, safetensors.torch.save(on_cpu, metadata))


def load_weights(path: Path, module: nn.Module, architecture: str = "") -> None:
    """Load a file of `save_weights` into `module`; names and shapes must match exactly.

    Raises `UserError` where they do not, where the file names another architecture than
    `architecture` (unless either is unknown), or where the file is not safetensors.
    `module` is then as before.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("architecture", "")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not weights of this model: {' '.join(str(error).split())}") from None
    if stored and architecture and stored != architecture:
        raise UserError(f"{path}: holds {stored}, but the model is {architecture}")
    _fill(module, weights, path)


def load_released(path: Path, module: nn.Module) -> None:
    """Load a `.pt` file of the authors (a state dict of their WideResNet) into `module`, a `WideResNet`.

    Nothing in the file is run. Raises `UserError` where it cannot be read, is no state
    dict of that network, or does not fit `module`, which is then as before. The authors
    do not standardise images: `module` should not either.
    """
    weights = _read_state(path)
    try:
        weights = released_state(weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _fill(module, weights, path)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:
        # Bytes that are no such file can fail anywhere in the unpickler, and PyTorch's message
        # for a file with code in it advises to run that code: neither is for the user.
        raise UserError(
            f"{path}: not a PyTorch file of plain tensors: damaged, cut short, or with other objects in it"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(f"{path}: not a state dict (tensors by name)")
    return content


def _fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a module that has exactly these names and shapes, else `UserError` with the first misfit."""
    for misfit in _misfits(module.state_dict(), weights):
        raise UserError(f"{path}: not weights of this model: {misfit}")
    module.load_state_dict(weights, strict=True)


def _misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in own if name not in weights)
    yield from (f"{name} is unknown to the model" for name in weights if name not in own)
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            yield f"{name} has shape {list(weights[name].shape)}, in the model {list(tensor.shape)}"
