"""Networks in bfloat16 and channels last: the same function up to rounding, and nothing else in low precision."""

from pathlib import Path

import pytest
import torch
from small_settings import METHODS, train_settings
from torch import Tensor, nn

from pipeline import adversaries
from pipeline.ascent import Inner, frozen, input_gradient
from pipeline.losses import cross_entropy
from pipeline.models.folding import folded
from pipeline.models.lowering import Lowered, is_wide
from pipeline.models.normalization import Normalize
from pipeline.models.resnet import PreActResNet18, ResNet18
from pipeline.models.small import SmallCNN
from pipeline.models.wide_resnet import WideResNet
from pipeline.perturbation import Linf
from pipeline.seeding import Stream, seeded_globals
from pipeline.training.loop import Trainer

BF16 = Inner(precision="bf16")
NETWORKS = {
    "small": lambda: SmallCNN(3, 8, 4, [4, 6], 1),
    "resnet": lambda: ResNet18(3, 4, widths=(4, 6, 8, 10)),
    "pre-activation resnet": lambda: PreActResNet18(3, 4, widths=(4, 6, 8, 10)),
    "wide resnet": lambda: WideResNet(10, 1, 3, 4),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> nn.Module:
    with seeded_globals(Stream.of(0, "test")):
        return request.param().eval()


@pytest.fixture
def images() -> Tensor:
    return Stream.of(0, "images").at(torch.arange(16)).uniform(3, 8, 8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_lowered_network_is_the_same_function(network, images, dtype: torch.dtype, tolerance: float) -> None:
    expected = network(images).detach()
    got = Lowered(folded(network), dtype)(images).detach()
    assert got.dtype == torch.float32 and got.is_contiguous()
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("first, then", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_view_of_a_view_runs_in_its_own_format(network, images, first: torch.dtype, then: torch.dtype) -> None:
    """As in an attack on a wide network whose own adversary runs in bfloat16."""
    once = Lowered(folded(network), first)
    twice = Lowered(once, then)(images)
    if then == torch.bfloat16:
        torch.testing.assert_close(twice, Lowered(folded(network), then)(images), rtol=0, atol=0)
    assert twice.dtype == torch.float32 and once.dtype == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_standardised_images_keep_their_format(images, dtype: torch.dtype) -> None:
    """A network in bfloat16 gets bfloat16 also behind its own normalisation."""
    normalize = Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    got = normalize(images.to(dtype))
    expected = (images.double() - normalize.mean.double()) / normalize.std.double()
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=0.01, atol=0.02 if dtype == torch.bfloat16 else 1e-5)
    network = PreActResNet18(3, 4, normalize, widths=(4, 6, 8, 10)).eval()
    exact, lowered = network(images).detach(), Lowered(folded(network), torch.bfloat16)(images).detach()
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, exact, rtol=0, atol=0.05 * float(exact.abs().max()))


def test_the_network_keeps_its_own_weights(network, images) -> None:
    before = {name: (value, value.clone()) for name, value in network.state_dict(keep_vars=True).items()}
    Lowered(folded(network), torch.bfloat16)(images)
    after = network.state_dict(keep_vars=True)
    assert all(after[name] is value and torch.equal(value, copy) for name, (value, copy) in before.items())


def test_input_gradients_in_bfloat16_point_the_same_way(network, images) -> None:
    labels = torch.arange(16) % 4
    gradients = []
    for inner in (Inner(), BF16):
        with frozen(network, inner) as fast:
            gradients.append(input_gradient(fast, images, labels, cross_entropy).flatten(1))
    assert gradients[1].dtype == torch.float32
    assert float(torch.cosine_similarity(*gradients).min()) > 0.95


def test_wide_is_from_64_channels_on() -> None:
    assert not is_wide(SmallCNN(1, 8, 10, [16, 32], 1))
    assert is_wide(SmallCNN(1, 8, 10, [16, 64], 1))


def dtypes_inside(model: nn.Module) -> list[torch.dtype]:
    """Where the dtype of every convolution's output will be noted."""
    seen: list[torch.dtype] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_touches_the_networks_alone(method: str, make_model, make_examples, tmp_path: Path) -> None:
    data, model, threat = make_examples(12), make_model(), Linf(0.2)
    with seeded_globals(Stream.of(0, "test adversary")):
        adversary = adversaries.build(method, METHODS[method], threat, 1, 6, BF16)
    seen = dtypes_inside(model), dtypes_inside(adversary)
    samples = adversary(model, data.x, data.y, Stream.of(0, "test").at(data.index))
    values = [samples.x, *samples.stats.values()] + ([] if samples.penalty is None else [samples.penalty])
    assert {value.dtype for value in values} == {torch.float32}
    settings = train_settings(precision="bf16")
    trainer = Trainer(model, adversary, threat, settings, 0, tmp_path / "state.pt", "fingerprint")
    trainer.step(1, data, torch.arange(12))
    assert all(set(dtypes) <= {torch.bfloat16} for dtypes in seen) and seen[0]
    parameters = [*model.parameters(), *adversary.parameters()]
    assert {p.dtype for p in parameters} | {p.grad.dtype for p in parameters} == {torch.float32}


def test_validation_verdicts_are_taken_in_float32(make_model, make_examples, tmp_path: Path) -> None:
    data, model = make_examples(12), make_model()
    settings = train_settings(precision="bf16")
    adversary = adversaries.build("standard", METHODS["standard"], Linf(0.2), 1, 6, BF16)
    trainer = Trainer(model, adversary, Linf(0.2), settings, 0, tmp_path / "state.pt", "fingerprint")
    seen: list[tuple[torch.dtype, bool]] = []
    model.features[0].register_forward_hook(
        lambda layer, inputs, output: seen.append((output.dtype, torch.is_grad_enabled()))
    )
    trainer.run(data, data)
    judged = {dtype for dtype, graded in seen if not graded}
    assert judged == {torch.float32} and (torch.bfloat16, True) in seen
