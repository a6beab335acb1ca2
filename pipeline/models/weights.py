"""Model files: safetensors, that is tensors only, safe to open, byte-identical for equal weights."""

from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.files import write_bytes


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a state dict, atomically; tensors are copied to the CPU."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}
    write_bytes(path, safetensors.torch.save(on_cpu))


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a file of `save_weights` into `module`; names and shapes must match exactly.

    Raises `UserError` where they do not, or where the file is not safetensors.
    """
    try:
        module.load_state_dict(safetensors.torch.load(path.read_bytes()), strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not weights of this model: {' '.join(str(error).split())}") from None
