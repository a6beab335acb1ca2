"""The GPU benchmark, on tiny networks and the CPU: every row is measured, and what cannot be is said."""

import json
from pathlib import Path

import pytest
import torch
from test_benchmarks import MINIATURE

from benchmarks import gpu, gpu_attacks, gpu_steps, timing, training
from pipeline import distribution

PEAKS = {"product": 1e12, "convolution": 1e12}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in MINIATURE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "clone"


@pytest.fixture(autouse=True)
def no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "peaks", lambda dtype, device: PEAKS)


def run(tmp_path: Path, *arguments: str) -> dict:
    output = tmp_path / "gpu.json"
    gpu.main(["--smoke", "--device", "cpu", "--rounds", "1", "--output", str(output), *arguments])
    return json.loads(output.read_text())


def test_every_method_and_attack_is_timed_against_the_released_code(
    tmp_path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_steps, "METHODS", ("adt_exp",))
    monkeypatch.setattr(gpu_attacks, "LARGE", 2)
    content = run(tmp_path, "--reference", str(clone))
    assert [row["method"] for row in content["steps"]] == ["adt_exp"]
    variants = {"released", "released fp32", "fp32", "bf16", "bf16 wide"}
    assert {name for name, cell in content["steps"][0].items() if isinstance(cell, dict)} == variants
    for row in content["steps"]:
        bf16 = row["bf16"]
        assert bf16["images_per_second"] == pytest.approx(4000 / bf16["ms"])
        assert bf16["flops_per_second"] == pytest.approx(row["useful_flops"] / bf16["ms"] * 1000)
        assert bf16["times_faster"]["median"] == pytest.approx(row["released"]["ms"] / bf16["ms"])
    assert set(content["attacks"][0]) >= {"released", "fp32", "bf16", "bf16 large"}
    assert set(content["input_gradients"][0]["ms"]) == {"called"}
    shares = content["targets"]["ADT_EXP step on wrn-28-10, share of the peak"]
    best = max(cell["flops_per_second"] for name, cell in content["steps"][0].items() if name.startswith("bf16"))
    assert shares == {"target": 0.45, "tiny at 4": pytest.approx(best / PEAKS["product"])}
    assert content["left_out"] == content["failed"] == []
    assert "target 5: ADT_EXP step, times the released" in capsys.readouterr().out


def test_what_does_not_fit_into_the_budget_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = run(tmp_path, "--budget", "1e-9")
    assert content["steps"] == content["attacks"] == []
    assert "adt_exp on tiny at 4" in content["left_out"]
    assert "left out, for --budget 1e-09: adt_exp on tiny at 4" in capsys.readouterr().out


def test_a_row_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = gpu_steps.measure

    def failing(method: str, *rest: object) -> dict:
        if method == "adt_exp":
            raise RuntimeError("no deterministic kernel\nand a long story")
        return measured(method, *rest)

    monkeypatch.setattr(gpu_steps, "METHODS", ("adt_exp", "at_pgd"))
    monkeypatch.setattr(gpu_steps, "measure", failing)
    monkeypatch.setattr(gpu.Bench, "_others", lambda bench, batch: iter(()))
    content = run(tmp_path)
    assert [row["method"] for row in content["steps"]] == ["at_pgd"]
    assert content["failed"] == ["network tiny, method adt_exp, batch 4: no deterministic kernel"]


def test_the_full_sizes_are_refused_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "no GPU here" in capsys.readouterr().err


def test_settings_of_torch_and_of_the_search_are_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_deterministic_debug_mode(), distribution._PASS
    with gpu_steps.as_installed(), gpu_steps.passes_of(7):
        assert (torch.backends.cudnn.allow_tf32, torch.get_deterministic_debug_mode()) == (True, 0)
        assert distribution._PASS == 7
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_deterministic_debug_mode(), distribution._PASS)


def test_useful_arithmetic_of_adt_exp_is_that_of_the_formula() -> None:
    # T k passes that give gradients of images (forward and one backward product), then one of training (two).
    subject = gpu_steps.SMOKE["tiny"]
    network = subject.at(4)
    model = gpu_steps.classifier(network, torch.device("cpu"))
    one = 0

    def count(layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal one
        one += 2 * output.numel() * layer.weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model.eval()(network.examples(torch.device("cpu")).x)
    for hook in hooks:
        hook.remove()
    step = training.ours("adt_exp", network, model, "fp32", torch.device("cpu"))
    assert training.arithmetic(step) == (7 * 5 * 2 + 3) * one
