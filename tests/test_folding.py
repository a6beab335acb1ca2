"""A folded model is the same function in evaluation mode, and the model does not notice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.folding import folded
from pipeline.models.generator import Generator
from pipeline.models.small import SmallCNN
from pipeline.seeding import Stream, seeded_globals


class Bare(nn.Module):
    """Convolution and batch norm as attributes, without nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: SmallCNN(2, 6, 3, [4, 5], 1),
    "unshuffled classifier": lambda: SmallCNN(2, 6, 3, [4, 5], 2),
    "generator": lambda: Generator(2, 3, 6, 4),
    "encoder": lambda: nn.Sequential(Encoder(2, 2, 3).features, nn.Flatten()),
    "convolution with bias": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)),
    "grouped, dilated, strided": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2, dilation=2, groups=2), nn.BatchNorm2d(4)
    ),
    "norm without convolution before it": lambda: nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)
    ),
    "two norms": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), nn.BatchNorm2d(3)),
    "no sequence": Bare,
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> nn.Module:
    """In float64 and evaluation mode, with batch norms that do something."""
    with seeded_globals(Stream.of(0, "test")):
        model = request.param().double().eval()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.running_var, layer.weight.data):
                    tensor.uniform_(0.5, 2)
                for tensor in (layer.running_mean, layer.bias.data):
                    tensor.normal_()
    return model


@pytest.fixture
def images() -> Tensor:
    return Stream.of(0, "test").at(torch.arange(4)).uniform(2, 6, 6).double()


def test_folding_keeps_the_function_and_its_input_gradient(network: nn.Module, images: Tensor) -> None:
    images.requires_grad_()
    expected, got = network(images), folded(network)(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    slope, folded_slope = (torch.autograd.grad(out.square().sum(), images)[0] for out in (expected, got))
    torch.testing.assert_close(folded_slope, slope, rtol=0, atol=1e-9 * float(slope.abs().max()))


def test_folding_leaves_the_model_alone(network: nn.Module, images: Tensor) -> None:
    network.train()
    modules = list(network.named_modules())
    flags = [m.training for _, m in modules], [p.requires_grad for p in network.parameters()]
    before = {name: (tensor, tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    folded(network).eval()(images)
    assert list(network.named_modules()) == modules
    assert ([m.training for _, m in modules], [p.requires_grad for p in network.parameters()]) == flags
    for name, tensor in network.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])


def test_no_batch_norm_is_left_in_the_classifier(make_model) -> None:
    kinds = [type(layer) for layer in folded(make_model()).modules()]
    assert nn.BatchNorm2d not in kinds and kinds.count(nn.Conv2d) == 2


def test_a_view_shares_unfolded_parameters_and_keeps_folded_ones(make_model, make_examples) -> None:
    model, x = make_model().eval(), make_examples().x
    view, before = folded(model), model(x)
    with torch.no_grad():
        model.features[0].weight.mul_(2)
    assert not torch.allclose(model(x), before)
    torch.testing.assert_close(view(x), before)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(3)
    assert (view(x) == 3).all()


def test_a_new_view_follows_a_training_step(make_model, make_examples) -> None:
    model, data = make_model(torch.float64).train(), make_examples(dtype=torch.float64)
    folded(model)
    nn.functional.cross_entropy(model(data.x), data.y).backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    model.eval()
    torch.testing.assert_close(folded(model)(data.x), model(data.x), rtol=0, atol=1e-10)


class Doubling(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "layers",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)),
        Doubling(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
    ],
    ids=["no scale", "no statistics", "no pair", "a subclass with its own forward"],
)
def test_what_is_no_pair_is_left_as_it_is(layers: nn.Module, images: Tensor) -> None:
    network = layers.to(images.dtype).eval()
    assert torch.equal(folded(network)(images[:, :1]), network(images[:, :1]))


def test_layers_keep_their_places() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    assert [type(layer) for layer in folded(network)] == [nn.Conv2d, nn.Identity, nn.ReLU]
