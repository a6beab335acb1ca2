"""The measurements against the released code: its loading on a clone in miniature, and the code itself where it is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import evaluation, fidelity, ours, reference, steps, training
from benchmarks.instruments import QueuedTorch, queued
from benchmarks.reference import Reference, pgd_loss
from benchmarks.released import Clone, replaced
from benchmarks.setting import Setting
from pipeline.errors import UserError
from pipeline.models.generator import Generator
from pipeline.perturbation import Linf
from pipeline.seeding import Noise, Stream

SCRIPT_HEAD = """
import argparse
import torch
import torch.nn.functional as F
import torch.optim as optim
import torchvision_that_is_not_installed
from models.wideresnet import *
from models.generator import define_G, Encoder

args = argparse.ArgumentParser().parse_args(["--fail"])
"""
MINIATURE = {
    "adt_exp.py": SCRIPT_HEAD
    + """
def adt_loss(model, x_natural, y, optimizer, learning_rate, epsilon, perturb_steps, num_samples, lbd):
    centre = torch.zeros(x_natural.size()).cuda().requires_grad_()
    spread = torch.zeros(x_natural.size()).cuda().requires_grad_()
    inner = optim.Adam([centre, spread], lr=learning_rate, betas=(0.0, 0.0))
    for _ in range(perturb_steps):
        for _ in range(num_samples):
            (centre + spread * torch.randn_like(x_natural)).sum().backward()
        inner.step()
    return F.cross_entropy(model(x_natural + centre.detach() * torch.randn_like(x_natural)), y)
""",
    "adt_expam.py": SCRIPT_HEAD
    + """
def grad_inv(gradient):
    return -gradient

def generate_pert(phi):
    return phi * torch.randn_like(phi)

def train(args, model, device, train_loader, optimizer, epoch, G, optimizer_G):
    for number, (data, target) in enumerate(train_loader):
        F.cross_entropy(model(data), target)
        loss = F.cross_entropy(model(data + args.epsilon * generate_pert(G(data))), target)
        optimizer.zero_grad()
        optimizer_G.zero_grad()
        (loss + args.lbd).backward()
        optimizer.step()
        optimizer_G.step()
        if number % args.log_interval == 0:
            print("a line of progress")
""",
    "adt_impam.py": SCRIPT_HEAD
    + """
def grad_inv(gradient):
    return -gradient

def latent(args, data):
    return math.pi * torch.rand(len(data), args.z_dim, device='cuda')

def train(args, model, device, train_loader, optimizer, epoch, G, optimizer_G, encoder, optimizer_encoder):
    for data, target in train_loader:
        z = latent(args, data)
        (F.cross_entropy(model(data), target) + G(data).mean() + encoder(data).mean() + z.mean()).backward()
""",
    "evaluate_attacks.py": SCRIPT_HEAD
    + """
def _pgd_whitebox(model, X, y, epsilon=args.epsilon, num_steps=args.num_steps, step_size=args.step_size):
    print("a line of progress")
    natural = (model(X).argmax(1) != y).sum()
    images = X.data + args.random * torch.FloatTensor(*X.shape).uniform_(-epsilon, epsilon).to(device)
    for _ in range(num_steps):
        images.requires_grad_()
        F.cross_entropy(model(images), y).backward()
        stepped = images.data + step_size * images.grad.sign()
        images = (X.data + (stepped - X.data).clamp(-epsilon, epsilon)).clamp(0, 1)
    return natural, (model(images).argmax(1) != y).sum()
""",
    "models/resnet.py": """
import torch.nn as nn

def ResNet18():
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 49, 10))
""",
    "models/wideresnet.py": """
import math
import torch.nn as nn

class WideResNet(nn.Linear):
    def __init__(self, depth=34):
        super(WideResNet, self).__init__(depth, 10)
""",
    "models/generator.py": """
import torch
import torch.nn as nn

class Encoder(nn.Conv2d):
    def __init__(self, latent_size):
        super(Encoder, self).__init__(3, 2 * latent_size, 32)

def define_G(input_nc, output_nc, ngf, netG, gpu_ids=[torch.device('cuda:0')], z_dim=0):
    assert not gpu_ids
    print('a line of progress')
    return nn.Conv2d(input_nc, output_nc, 1)
""",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files and names of the released code, none of its content."""
    for name, text in MINIATURE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "clone"


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    rows = Stream.of(0, "test images").at(torch.arange(4))
    return rows.uniform(3, 32, 32), torch.tensor([0, 3, 3, 9])


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def normals(count: int, like: Tensor) -> list[Tensor]:
    return list(Stream.of(0, "test noise").at(torch.arange(len(like))).normal(count, *like.shape[1:]).unbind(1))


# Loading


def test_definitions_load_without_what_the_scripts_do_at_module_level(clone: Path) -> None:
    module = Clone(clone, "cpu").module("adt_exp", "adt_loss")
    assert not hasattr(module, "args") and not hasattr(module, "argparse")


def test_tensors_go_to_the_device_asked_for(clone: Path) -> None:
    (clone / "adt_exp.py").write_text(
        "import torch\ndef adt_loss():\n"
        "    return torch.ones(2).cuda(), torch.ones(2).cuda(0, non_blocking=True), torch.ones(2, device='cuda:1')\n"
    )
    tensors = Clone(clone, "meta").module("adt_exp").adt_loss()
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 3
    generator = Clone(clone, "meta").module("models.generator").define_G
    assert generator.__defaults__[0] == [torch.device("meta")]


def test_imports_inside_the_clone_mean_what_they_mean_in_python(clone: Path) -> None:
    loaded = Clone(clone, "cpu")
    script = loaded.module("adt_impam")
    assert script.WideResNet is loaded.module("models.wideresnet").WideResNet
    assert script.Encoder is loaded.module("models.generator").Encoder
    assert script.math.pi > 3  # which the script has from a star import alone
    assert not hasattr(script, "ResNet18")


def test_what_is_replaced_comes_back_even_after_an_error(clone: Path) -> None:
    module = Clone(clone, "cpu").module("adt_exp")
    with pytest.raises(ZeroDivisionError), replaced(module, torch=None):
        assert module.torch is None
        raise ZeroDivisionError
    assert module.torch is torch


def break_clone(clone: Path, how: str) -> None:
    script = clone / "adt_expam.py"
    if how == "no folder":
        clone.rename(clone.with_name("elsewhere"))
    elif how == "no file":
        script.unlink()
    elif how == "no function":
        script.write_text(script.read_text().replace("def train", "def trains"))
    elif how == "no import":
        script.write_text("from models.resnet import ResNet19\n" + script.read_text())
    else:
        script.write_text("def train(:\n")


@pytest.mark.parametrize(
    "how, message",
    [
        ("no folder", r"clone: no such folder; a clone of the released code is needed"),
        ("no file", r"adt_expam\.py: No such file or directory; is this a clone of the released code\?"),
        ("no function", r"adt_expam\.py: there is no train; is this the released code\?"),
        ("no import", r"models/resnet\.py: there is no ResNet19, which .*adt_expam\.py imports"),
        ("not Python", r"adt_expam\.py: not Python: "),
    ],
)
def test_a_folder_that_is_no_clone_is_refused_in_one_line(clone: Path, how: str, message: str) -> None:
    break_clone(clone, how)
    with pytest.raises(UserError, match=message) as refusal:
        Reference(clone)
    assert "\n" not in str(refusal.value)


# Noise and steps


def test_given_noise_is_drawn_in_order_and_must_fit(batch) -> None:
    x, _ = batch
    first, second = normals(2, x)
    queue = QueuedTorch([first, second])
    assert queue.randn_like(x) is first and queue.rand(*x.shape, device="cpu") is second
    assert queue.ones is torch.ones
    with pytest.raises(ValueError, match="more noise is drawn than was given"):
        queue.randn_like(x)
    with pytest.raises(ValueError, match=r"noise of shape \(4, 5\) is drawn, but the next tensor is \(4, 3, 32, 32\)"):
        QueuedTorch([first]).rand(4, 5)


def test_noise_that_nobody_draws_is_an_error(clone: Path, batch) -> None:
    module = Clone(clone, "cpu").module("adt_exp")
    with pytest.raises(ValueError, match="1 of the given noise tensors were not drawn"), queued(module, [batch[0]]):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_explicit_loss_draws_the_noise_and_leaves_a_trace(clone: Path, batch, dtype: torch.dtype) -> None:
    released, x, y, trace = Reference(clone), batch[0].to(dtype), batch[1], []
    model = released.resnet18().to(dtype)
    noise = [tensor.to(dtype) for tensor in normals(2 * 3 + 1, x)]
    loss = released.explicit_loss(model, x, y, sgd(model), 0.5, 0.1, 2, 3, 0.0, noise, trace)
    assert [mean.dtype for mean, _ in trace] == [dtype] * 2
    close = torch.testing.assert_close  # steps of this Adam go by the sign of the gradient
    close([mean for mean, _ in trace], [torch.full_like(x, -0.5), torch.full_like(x, -1.0)])
    close(trace[0][1], -0.5 * sum(noise[:3]).sign(), rtol=0, atol=1e-2)
    torch.testing.assert_close(loss, cross_entropy(model(x + trace[-1][0] * noise[-1]), y))
    assert torch.get_default_dtype() == torch.float32
    assert released.explicit_loss(model, x, y, sgd(model), 0.5, 0.1, 1, 1, 0.0).isfinite()


def test_an_amortised_step_moves_both_players_and_returns_the_training_loss(clone: Path, batch, capsys) -> None:
    released, (x, y) = Reference(clone), batch
    model, generator = released.resnet18(), released.generator(3, 3, 8)
    noise = normals(1, x)
    expected = cross_entropy(model(x + 0.1 * generator(x) * noise[0]), y)
    before = [p.detach().clone() for p in (*model.parameters(), *generator.parameters())]
    loss = released.amortized_step(model, x, y, sgd(model), generator, sgd(generator), 0.1, 0.01, noise)
    torch.testing.assert_close(loss, expected.detach())
    after = [*model.parameters(), *generator.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(after[:2] + after[4:], before[:2] + before[4:], strict=True))
    assert capsys.readouterr().out == ""


def test_an_implicit_step_draws_its_latent_vectors(clone: Path, batch) -> None:
    released, (x, y) = Reference(clone), batch
    model, generator, encoder = released.resnet18(), released.generator(3, 3, 8, 5), released.encoder(5)
    players = (model, x, y, sgd(model), generator, sgd(generator), encoder, sgd(encoder))
    released.implicit_step(*players, 0.1, 1.0, 0.9, 5, noise=[torch.rand(4, 5)])
    assert generator.weight.grad is not None and encoder.weight.grad is not None
    with pytest.raises(ValueError, match=r"noise of shape \(4, 5\) is drawn"):
        released.implicit_step(*players, 0.1, 1.0, 0.9, 5, noise=[torch.rand(4, 6)])


def test_the_baselines_loss_is_that_of_projected_gradient_ascent(clone: Path, batch, textbook_ascent) -> None:
    x, y = batch[0].double(), batch[1]
    model = Reference(clone).resnet18().double()
    start = 0.1 * (2 * torch.rand(x.shape, dtype=torch.float64) - 1)
    delta = (x + start).clamp(0, 1) - x
    loss = partial(cross_entropy, reduction="none")
    images = textbook_ascent(model.eval(), x, y, delta, loss, Linf(0.1), 3, 0.03)
    got = pgd_loss(model, x, y, sgd(model), 0.1, 3, 0.03, start)
    assert model.training
    torch.testing.assert_close(got, cross_entropy(model(images), y))
    assert all(p.grad is None for p in model.parameters())
    assert pgd_loss(model, x, y, sgd(model), 0.1, 1, 0.03).requires_grad


def test_a_clone_under_git_tells_its_commit(clone: Path) -> None:
    assert Reference(clone).commit() is None
    git = partial(subprocess.run, cwd=clone, check=True, capture_output=True, text=True)
    git(["git", "init", "-q"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"])
    assert Reference(clone).commit() == git(["git", "rev-parse", "HEAD"]).stdout.strip()


# Our side


def test_recorded_noise_is_our_noise_sample_by_sample() -> None:
    plain = Noise(3, torch.arange(2))
    noise = ours.RecordedNoise(3, torch.arange(2), torch.float64)
    noise.normal(2, 3, 4, 4, draw=1), noise.uniform(1, 5), noise.normal(3, 4, 4)
    queue = noise.queue()
    assert [tuple(t.shape) for t in queue] == [(2, 3, 4, 4), (2, 3, 4, 4), (2, 5), (2, 3, 4, 4)]
    assert {t.dtype for t in queue} == {torch.float64}
    torch.testing.assert_close(queue[1].float(), plain.normal(2, 3, 4, 4, draw=1)[:, 1])
    assert torch.equal(queue[2].float(), plain.uniform(5))


def test_distance_is_the_largest_difference_and_the_share_that_lies_apart() -> None:
    one, other = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([1.0, 2.005, 3.5, 10.0])
    assert fidelity.distance(one, other, 10.0) == fidelity.Distance(0.5, 0.25)
    with pytest.raises(ValueError, match="shapes differ"):
        fidelity.distance(one, other[:1], 1.0)


# The command


def test_the_command_prints_a_table_and_writes_its_numbers(clone: Path, tmp_path: Path, capsys) -> None:
    fidelity.main(["--reference", str(clone), "--methods", "at_pgd", "--output", str(tmp_path / "numbers.json")])
    printed = capsys.readouterr().out
    assert "torch" in printed and "not a git clone" in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["conditions"]["seed"] == 0
    assert len(printed.splitlines()) == len(numbers["conditions"]) + 2 + len(numbers["rows"])
    assert {row["quantity"] for row in numbers["rows"]} == {"images", "loss", "classifier gradient"}
    assert all(row["distances"]["float64"]["largest"] < 1e-12 for row in numbers["rows"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "nowhere"], "error: --device nowhere: no such device here, or it has no float64\n"),
        (["--threads", "0"], "error: --threads 0: at least 1\n"),
    ],
)
def test_a_wrong_option_ends_in_one_line_and_status_2(clone: Path, capsys, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        fidelity.main(["--reference", str(clone), *arguments])
    assert end.value.code == 2 and capsys.readouterr().err == message


def test_the_command_without_a_clone_ends_in_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fidelity", "--reference", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'}: no such folder; a clone of the released code is needed\n"


# The released code itself


@pytest.fixture(scope="module")
def released() -> Reference:
    folder = os.environ.get("ADT_REFERENCE")
    if not folder:
        pytest.skip("ADT_REFERENCE names no clone of the released code")
    return Reference(Path(folder))


@pytest.mark.parametrize("latent", [0, 64])
def test_a_released_generator_has_our_layout_under_other_names(released: Reference, latent: int) -> None:
    theirs = released.generator(10 if latent else 9, 6, 4, latent).eval()
    mine = Generator(9, 6, 32, 4, latent).eval()
    mine.load_state_dict(ours.renamed(theirs.state_dict()))
    maps, z = torch.rand(2, 9, 32, 32), torch.rand(2, 64) if latent else None
    torch.testing.assert_close(mine(maps, z), theirs(maps, z=z))


@pytest.mark.parametrize("method", steps.METHODS)
def test_our_steps_are_the_released_ones_but_for_the_differences_we_chose(released: Reference, method: str) -> None:
    setting, case = Setting(released, torch.float64, 1), steps.METHODS[method].cases[-1]
    mine, noise = steps.METHODS[method].ours(setting, case)
    theirs = steps.METHODS[method].released(setting, case, noise)
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        largest = float(expected.abs().max())
        assert float((mine[name] - expected).abs().max()) < 1e-4 * largest, name


def test_released_networks_have_their_published_sizes(released: Reference) -> None:
    sizes = [sum(p.numel() for p in net.parameters()) for net in (released.generator(9, 6), released.encoder(64))]
    assert sizes == [10_330_880, 724_384]
    assert reference.Reference(released.folder, "cpu").wide_resnet(10)(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.fixture
def undone() -> Iterator[None]:
    """`machine.prepare` asks this whole process for deterministic kernels; afterwards it is as before."""
    mode = torch.get_deterministic_debug_mode()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.usefixtures("undone")
def test_the_training_benchmark_times_both_sides_and_writes_ratios(clone: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "numbers.json"
    training.main(["--reference", str(clone), "--networks", "digits", "--rounds", "2", "--output", str(output)])
    numbers = json.loads(output.read_text())
    assert [(row["network"], row["method"]) for row in numbers["rows"]] == [("digits", "at_pgd"), ("digits", "adt_exp")]
    for row in numbers["rows"]:
        faster = row["fp32"]["times_faster"]
        assert 0 < faster["least"] <= faster["median"] <= faster["greatest"]
        assert row["bf16"]["flops_per_second"] > 0
    assert numbers["conditions"]["threads"] == 1 and "adt_exp" in capsys.readouterr().out


def test_useful_arithmetic_is_counted_from_the_layers() -> None:
    network = training.NETWORKS["digits"]
    model = network.build(None)
    step = training.ours("at_pgd", network, model, "fp32", torch.device("cpu"))
    # Multiply-adds an image: 3x3 convolutions 1 -> 16 on 8x8 and 16 -> 32 on 4x4, linear 512 -> 10.
    forward = 2 * (9 * 16 * 64 + 9 * 16 * 32 * 16 + 512 * 10)
    # Seven input gradients (forward and back once) and one training pass (back twice).
    assert training.arithmetic(step) == 64 * forward * (7 * 2 + 3)


@pytest.mark.usefixtures("undone")
def test_the_evaluation_benchmark_times_both_sides_and_their_verdicts_agree(
    clone: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "numbers.json"
    small = ["--networks", "digits", "--rounds", "1", "--images", "40", "--epochs", "2", "--attacks", "pgd-20"]
    evaluation.main(["--reference", str(clone), *small, "--output", str(output)])
    assert "a line of progress" not in capsys.readouterr().out
    numbers = json.loads(output.read_text())
    names = [(row["network"], row["training"], row["attack"]) for row in numbers["rows"]]
    assert names == [("digits", by, "pgd-20") for by in ("standard", "robust")]
    for row in numbers["rows"]:
        held = {name: cell["accuracy"] for name, cell in row["ours"].items()} | {
            "released": row["released"]["accuracy"]
        }
        assert list(row["ours"]) == ["fp32 last", "bf16 last", "fp32 any"]
        assert all(cell["times_faster"]["least"] > 0 for cell in row["ours"].values())
        # Both sides draw their own random starts, so a few of the 40 examples may differ.
        assert abs(held["released"] - held["fp32 last"]) <= 0.1 and abs(held["released"] - held["bf16 last"]) <= 0.1
        assert held["fp32 any"] <= held["fp32 last"]
    assert numbers["conditions"]["images"] == 40
