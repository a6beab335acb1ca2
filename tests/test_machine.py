"""The machine: devices by name, deterministic arithmetic, a fingerprint of what decides bits."""

import subprocess
import sys

import pytest
import torch

from pipeline import machine
from pipeline.errors import UserError
from pipeline.params import Runtime


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert machine.resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_one_line_with_the_key() -> None:
    with pytest.raises(UserError, match="^params.yaml: runtime.device: no cuda device here; available: auto, cpu"):
        machine.resolve("cuda")


def test_prepare_fixes_threads_and_asks_for_deterministic_kernels() -> None:
    code = (
        "import torch; from pipeline import machine; from pipeline.params import Runtime\n"
        "machine.prepare(Runtime(device='cpu', threads=1))\n"
        "print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


def test_threads_and_versions_are_part_of_the_fingerprint() -> None:
    one, two = (machine.fingerprint(Runtime(device="cpu", threads=threads)) for threads in (1, 2))
    assert {name for name in one if one[name] != two[name]} == {"threads"}
    assert one["torch"] == torch.__version__ and one["processor"]
