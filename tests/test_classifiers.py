"""Residual classifiers: sizes, layouts written out once more, folding, and the authors' published layout."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.models import count_parameters
from pipeline.models.folding import folded
from pipeline.models.normalization import Normalize
from pipeline.models.resnet import BasicBlock, PreActBlock, PreActResNet18, ResNet18
from pipeline.models.wide_resnet import WideResNet, released_state
from pipeline.seeding import Stream, seeded_globals

WIDTHS = (4, 5, 6, 7)
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "ResNet18": lambda channels, classes, **more: ResNet18(channels, classes, widths=WIDTHS, **more),
    "PreActResNet18": lambda channels, classes, **more: PreActResNet18(channels, classes, widths=WIDTHS, **more),
    "WRN-10-2": lambda channels, classes, **more: WideResNet(10, 2, channels, classes, **more),
    "WRN-16-1": lambda channels, classes, **more: WideResNet(16, 1, channels, classes, **more),
}


@pytest.fixture(params=BUILDERS.values(), ids=BUILDERS.keys())
def build(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return request.param


def shaken(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with batch norms that do something."""
    with seeded_globals(Stream.of(0, "test norms")):
        for layer in module.double().eval().modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.uniform_(0.5, 2)
                layer.running_mean.normal_(0, 0.3)
                nn.init.uniform_(layer.weight, 0.5, 2)
                nn.init.normal_(layer.bias, 0, 0.3)
    return module


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with seeded_globals(Stream.of(0, "test model")):
        return make()


def images(channels: int, size: int, count: int = 2) -> Tensor:
    return Stream.of(0, "test images").at(torch.arange(count)).uniform(channels, size, size).double()


def norm(x: Tensor, s: Mapping[str, Tensor], name: str) -> Tensor:
    """Batch norm in evaluation mode, by its definition."""
    mean, variance, scale, shift = (
        s[f"{name}.{tensor}"].view(-1, 1, 1) for tensor in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


# Sizes


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: ResNet18(3, 10), 11_173_962),
        (lambda: PreActResNet18(3, 10), 11_172_170),
        (lambda: WideResNet(28, 10, 3, 10), 36_479_194),
        (lambda: WideResNet(28, 10, 3, 100), 36_479_194 + 90 * 641),
        (lambda: WideResNet(34, 10, 3, 10), 46_160_474),
    ],
    ids=["ResNet-18", "PreAct ResNet-18", "WRN-28-10", "WRN-28-10 of 100 classes", "WRN-34-10"],
)
def test_the_published_networks_have_their_number_of_parameters(make, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(make()) == expected


def test_the_parameters_of_the_18_layers_add_up() -> None:
    widths, inputs = [64, 64, 128, 128, 256, 256, 512, 512], [64, 64, 64, 128, 128, 256, 256, 512]
    convolutions = 3 * 64 * 9 + sum(9 * (i + w) * w for i, w in zip(inputs, widths, strict=True))
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512
    linear = 512 * 10 + 10
    norms_after = 2 * (64 + 2 * sum(widths) + 128 + 256 + 512)
    norms_before = 2 * (sum(inputs) + sum(widths) + 512)
    assert count_parameters(ResNet18(3, 10)) == convolutions + shortcuts + linear + norms_after
    assert count_parameters(PreActResNet18(3, 10)) == convolutions + shortcuts + linear + norms_before


@pytest.mark.parametrize("channels, size, classes", [(1, 8, 2), (3, 32, 10), (2, 15, 7), (1, 28, 10)])
def test_there_is_a_logit_a_class_at_every_size(build, channels: int, size: int, classes: int) -> None:
    logits = build(channels, classes)(torch.rand(2, channels, size, size))
    assert logits.shape == (2, classes) and logits.isfinite().all()


@pytest.mark.parametrize("depth", [4, 12, 27, 29])
def test_a_wide_network_of_an_impossible_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6 n \+ 4.*{depth}"):
        WideResNet(depth, 1, 3, 10)


# Layouts


@pytest.mark.parametrize("inputs, outputs, stride", [(3, 3, 1), (3, 4, 1), (3, 3, 2), (3, 4, 2)])
def test_a_basic_block_is_two_convolutions_and_a_shortcut(inputs: int, outputs: int, stride: int) -> None:
    block, x = shaken(seeded(lambda: BasicBlock(inputs, outputs, stride))), images(inputs, 7)
    s = block.state_dict()
    expected = norm(F.conv2d(x, s["body.0.weight"], None, stride, 1), s, "body.1").clamp(min=0)
    expected = norm(F.conv2d(expected, s["body.3.weight"], None, 1, 1), s, "body.4")
    if (inputs, stride) == (outputs, 1):
        expected = expected + x
    else:
        expected = expected + norm(F.conv2d(x, s["shortcut.0.weight"], None, stride), s, "shortcut.1")
    torch.testing.assert_close(block(x), expected.clamp(min=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inputs, outputs, stride", [(3, 3, 1), (3, 4, 1), (3, 3, 2), (3, 4, 2)])
def test_a_pre_activation_block_projects_the_activated_input(inputs: int, outputs: int, stride: int) -> None:
    block, x = shaken(seeded(lambda: PreActBlock(inputs, outputs, stride))), images(inputs, 7) - 0.5
    s = block.state_dict()
    active = norm(x, s, "activate.0").clamp(min=0)
    expected = norm(F.conv2d(active, s["body.0.weight"], None, stride, 1), s, "body.1").clamp(min=0)
    expected = F.conv2d(expected, s["body.3.weight"], None, 1, 1)
    if (inputs, stride) == (outputs, 1):
        expected = expected + x
    else:
        expected = expected + F.conv2d(active, s["shortcut.weight"], None, stride)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [BasicBlock, PreActBlock])
def test_a_block_leaves_its_input_alone(block) -> None:
    x = images(3, 6) - 0.5
    before = x.clone()
    folded(shaken(block(3, 3, 1)))(x)
    assert torch.equal(x, before)


def test_the_first_stage_keeps_the_resolution_and_the_others_halve_it(build) -> None:
    model, seen = build(3, 10), []
    for stage in model.stages:
        stage.register_forward_hook(lambda layer, inputs, output: seen.append(tuple(output.shape[1:])))
    model(torch.rand(2, 3, 12, 12))
    sides = [12, 6, 3, 2]
    assert [shape[1:] for shape in seen] == [(side, side) for side in sides[: len(seen)]]
    assert len(seen) == (3 if isinstance(model, WideResNet) else 4)


def test_pre_activation_networks_activate_before_pooling() -> None:
    model = shaken(seeded(lambda: PreActResNet18(2, 3, widths=WIDTHS)))
    x, s = images(2, 9), model.state_dict()
    features = norm(model.stages(model.stem(x)), s, "neck.0").clamp(min=0).mean((2, 3))
    expected = features @ s["head.weight"].T + s["head.bias"]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


# Folding


def test_a_folded_network_is_the_same_function(build) -> None:
    model, x = shaken(seeded(lambda: build(2, 5))), images(2, 12)
    torch.testing.assert_close(folded(model)(x), model(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "make, before, after",
    [
        (lambda: ResNet18(3, 10, widths=WIDTHS), 20, 0),
        # What follows a sum cannot be folded: a block's first norm, and the last one.
        (lambda: PreActResNet18(3, 10, widths=WIDTHS), 8 + 8 + 1, 8 + 1),
        (lambda: WideResNet(28, 1, 3, 10), 12 + 12 + 1, 12 + 1),
    ],
    ids=["ResNet18", "PreActResNet18", "WRN-28"],
)
def test_every_norm_that_follows_a_convolution_of_its_block_is_folded(make, before: int, after: int) -> None:
    model = make()
    assert (norms(model), norms(folded(model))) == (before, after)


# Normalisation


def test_images_are_standardised_by_channel() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    standardised = Normalize([0.5, 0.25, 0.0], [0.5, 0.25, 0.1])(x)
    torch.testing.assert_close(standardised[0, :, 0, 0], torch.tensor([-1.0, 1.0, 10.0]))
    assert standardised.shape == x.shape


def test_normalisation_is_part_of_the_classifier_and_not_of_its_weights(build) -> None:
    mean, std = [0.25, 0.5], [0.5, 0.125]
    plain, inside = (
        shaken(seeded(lambda given=given: build(2, 3, normalize=given))) for given in (None, Normalize(mean, std))
    )
    x = images(2, 8)
    outside = (x - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    torch.testing.assert_close(inside(x), plain(outside), rtol=0, atol=1e-12)
    torch.testing.assert_close(folded(inside)(x), inside(x), rtol=0, atol=1e-9)
    assert inside.state_dict().keys() == plain.state_dict().keys()


def test_normalisation_follows_the_dtype_of_the_classifier(build) -> None:
    model = build(1, 2, normalize=Normalize([0.1], [0.3])).double()
    assert model(images(1, 8)).dtype == torch.float64


@pytest.mark.parametrize("mean, std", [([0.5], [0.5, 0.5]), ([], []), ([0.5, 0.5], [1.0, 0.0]), ([0.5], [-1.0])])
def test_impossible_normalisations_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="std"):
        Normalize(mean, std)


# Initialisation


def test_a_wide_network_starts_as_released() -> None:
    model = seeded(lambda: WideResNet(10, 4, 3, 10)).requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            outputs, _, height, width = layer.weight.shape
            assert float(layer.weight.std()) == pytest.approx((2 / (height * width * outputs)) ** 0.5, rel=0.1)
            assert abs(float(layer.weight.mean())) < 5 * float(layer.weight.std()) / layer.weight.numel() ** 0.5
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    bound = model.head.in_features**-0.5
    assert 0.95 * bound < float(model.head.weight.abs().max()) <= bound
    assert not model.head.bias.any()


# The authors' layout


def released_norm(name: str, width: int) -> dict[str, Tensor]:
    rows = Stream.of(0, name).at(torch.arange(4)).uniform(width).double()
    return {
        f"{name}.weight": 0.5 + rows[0],
        f"{name}.bias": rows[1] - 0.5,
        f"{name}.running_mean": rows[2] - 0.5,
        f"{name}.running_var": 0.5 + rows[3],
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def released_conv(name: str, inputs: int, outputs: int, kernel: int) -> dict[str, Tensor]:
    weight = Stream.of(0, name).at(torch.arange(outputs)).normal(inputs, kernel, kernel).double()
    return {f"{name}.weight": weight * (2 / (kernel**2 * outputs)) ** 0.5}


def released_blocks(name: str, inputs: int, outputs: int, blocks: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for index in range(blocks):
        block, wide = f"{name}.layer.{index}", outputs if index else inputs
        state |= released_norm(f"{block}.bn1", wide) | released_conv(f"{block}.conv1", wide, outputs, 3)
        state |= released_norm(f"{block}.bn2", outputs) | released_conv(f"{block}.conv2", outputs, outputs, 3)
        if wide != outputs:
            state |= released_conv(f"{block}.convShortcut", wide, outputs, 1)
    return state


def released(widen: int, blocks: int = 2) -> dict[str, Tensor]:
    """Random weights of the released WideResNet (3 channels, 5 classes) under the authors' names."""
    widths = [16, 16 * widen, 32 * widen, 64 * widen]
    state = released_conv("conv1", 3, 16, 3) | released_blocks("block1", *widths[:2], blocks)
    state |= released_blocks("sub_block1", *widths[:2], blocks)
    state |= released_blocks("block2", *widths[1:3], blocks) | released_blocks("block3", *widths[2:], blocks)
    head = Stream.of(0, "fc").at(torch.arange(5)).normal(widths[3] + 1).double()
    return state | released_norm("bn1", widths[3]) | {"fc.weight": head[:, 1:], "fc.bias": head[:, 0]}


def released_logits(s: Mapping[str, Tensor], x: Tensor, blocks: int = 2) -> Tensor:
    """The released forward in evaluation mode, on the authors' names."""
    x = F.conv2d(x, s["conv1.weight"], padding=1)
    for stage, index in ((stage, index) for stage in (1, 2, 3) for index in range(blocks)):
        name = f"block{stage}.layer.{index}"
        stride = 2 if stage > 1 and index == 0 else 1
        active = norm(x, s, f"{name}.bn1").relu()
        out = norm(F.conv2d(active, s[f"{name}.conv1.weight"], stride=stride, padding=1), s, f"{name}.bn2").relu()
        out = F.conv2d(out, s[f"{name}.conv2.weight"], padding=1)
        project = s.get(f"{name}.convShortcut.weight")
        x = out + (x if project is None else F.conv2d(active, project, stride=stride))
    pooled = F.avg_pool2d(norm(x, s, "bn1").relu(), x.shape[-1]).flatten(1)
    return F.linear(pooled, s["fc.weight"], s["fc.bias"])


@pytest.mark.parametrize("widen", [1, 2])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "DataParallel"])
def test_published_weights_give_the_released_logits(widen: int, prefix: str) -> None:
    state = released(widen)
    model = WideResNet(16, widen, 3, 5).double().eval()
    model.load_state_dict(released_state({prefix + name: tensor for name, tensor in state.items()}), strict=True)
    x = images(3, 16)
    torch.testing.assert_close(model(x), released_logits(state, x), rtol=0, atol=1e-9)


def test_the_released_network_holds_a_block_that_it_never_uses() -> None:
    with torch.device("meta"):
        unused = PreActBlock(16, 160, 1), *(PreActBlock(160, 160, 1) for _ in range(3))
    assert sum(map(count_parameters, unused)) == 1_640_672


def test_counters_of_batches_may_be_absent() -> None:
    state = {name: tensor for name, tensor in released(2).items() if not name.endswith("num_batches_tracked")}
    model = WideResNet(16, 2, 3, 5)
    model.load_state_dict(released_state(state), strict=True)
    assert model.neck[0].num_batches_tracked == 0


@pytest.mark.parametrize(
    "name",
    ["conv1.weight", "bn1.running_var", "fc.bias", "block1.layer.1.bn2.bias", "block3.layer.0.convShortcut.weight"],
)
def test_missing_published_weights_are_named(name: str) -> None:
    state = released(2)
    del state[name]
    with pytest.raises(UserError, match=f"missing weights {name} "):
        released_state(state)


@pytest.mark.parametrize(
    "name", ["logits.weight", "block4.layer.0.conv1.weight", "block1.layer.1.convShortcut.weight", "bn1.scale"]
)
def test_unknown_published_weights_are_named(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown weights {name} "):
        released_state(released(2) | {name: torch.zeros(1)})


def test_weights_of_no_network_at_all_are_refused() -> None:
    with pytest.raises(UserError, match=r"missing weights conv1\.weight"):
        released_state({})


# The authors' code, where it is at hand


def reference(file: str) -> ModuleType:
    """A module of a clone of the released code."""
    if "ADT_REFERENCE" not in os.environ:
        pytest.skip("ADT_REFERENCE names no clone of the released code")
    path = Path(os.environ["ADT_REFERENCE"]) / "models" / file
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("depth, widen", [(10, 2), (16, 1)])
def test_the_wide_network_is_the_released_class(depth: int, widen: int) -> None:
    theirs = shaken(seeded(lambda: reference("wideresnet.py").WideResNet(depth, 5, widen)))
    ours = WideResNet(depth, widen, 3, 5).double().eval()
    ours.load_state_dict(released_state(theirs.state_dict()), strict=True)
    x = images(3, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)


def test_resnet18_is_the_released_class() -> None:
    theirs = shaken(seeded(reference("resnet.py").ResNet18))
    ours = ResNet18(3, 10).double().eval()
    # Both list their layers in the order of the forward pass.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), strict=True)
    x = images(3, 32, count=1)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)
