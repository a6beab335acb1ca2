"""Samples of the GPU, by an `nvidia-smi` that the test provides."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import gauges, live


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A program of this name, alone on PATH, with this body; it notes its arguments in the file returned."""

    def make(body: str) -> Path:
        program, noted = tmp_path / "nvidia-smi", tmp_path / "arguments"
        program.write_text(f'#!/bin/sh\necho "$@" >> {noted}\n{body}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return noted

    return make


def wait_for(count: int) -> None:
    deadline = time.monotonic() + 10
    while len(gauges.samples()) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(gauges.samples()) >= count


def test_the_gauges_of_the_first_visible_gpu_are_sampled_while_the_block_runs(nvidia_smi, monkeypatch) -> None:
    noted = nvidia_smi("echo '35, 1024, 300.5'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    before = time.time()
    with gauges.sampling(interval=0.01):
        wait_for(3)
    found = gauges.samples()
    assert all(values == [35.0, 1024.0, 300.5] for _, *values in found) and len(gauges.GAUGES) == 3
    assert before - 0.01 <= found[0][0] < found[-1][0] <= time.time() + 0.01
    assert "-i 2" in noted.read_text() and "utilization.gpu,memory.used,power.draw" in noted.read_text()
    assert live.circumstances(1.0, {})["gauges"] == found


@pytest.mark.parametrize("body", ["exit 9", "echo '[N/A], 5, 5'", "echo 'no devices were found'"])
def test_a_sampler_that_gets_no_numbers_stops_in_silence(body: str, nvidia_smi, capfd) -> None:
    nvidia_smi(body)
    with gauges.sampling(interval=0.01):
        time.sleep(0.2)
    assert gauges.samples() == [] and "gauges" not in live.circumstances(1.0, {})
    assert capfd.readouterr() == ("", "")


def test_without_the_program_nothing_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with gauges.sampling(interval=0.01):
        pass
    assert gauges.samples() == []


def test_a_long_run_keeps_a_bounded_number_of_samples(nvidia_smi, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi("echo '1, 2, 3'")
    monkeypatch.setattr(gauges, "MOST", 6)
    lengths = []
    with gauges.sampling(interval=0.005):
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            lengths.append(len(gauges.samples()))
            time.sleep(0.002)
    assert max(lengths) <= 6 and any(after < before for before, after in zip(lengths, lengths[1:], strict=False))
