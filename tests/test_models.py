"""Networks: shapes, sizes, and the layout and initialisation of the released generator."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline import models, params
from pipeline.errors import UserError
from pipeline.models.encoder import Encoder
from pipeline.models.generator import Generator, ResidualBlock
from pipeline.models.small import SmallCNN
from pipeline.seeding import Stream, seeded_globals

SETTINGS = SimpleNamespace(name="small_cnn", widths=[2, 3, 4], unshuffle=1)


@pytest.mark.parametrize("channels, size, widths, unshuffle", [(1, 8, [4], 1), (3, 7, [2, 3, 4], 1), (1, 8, [4, 6], 2)])
def test_the_classifier_gives_a_logit_a_class_at_every_size(channels, size, widths, unshuffle) -> None:
    settings = SimpleNamespace(name="small_cnn", widths=widths, unshuffle=unshuffle)
    model = models.classifier(settings, {"shape": [channels, size, size], "classes": list("abcde")})
    assert model(torch.rand(2, channels, size, size)).shape == (2, 5)


@pytest.mark.usefixtures("untouched_random_state")
def test_a_seed_determines_the_initial_classifier() -> None:
    meta = {"shape": [1, 8, 8], "classes": ["a", "b"]}
    one, same, other = (models.classifier(SETTINGS, meta, seed).state_dict() for seed in (0, 0, 1))
    torch.testing.assert_close(dict(one), dict(same), rtol=0, atol=0)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "unshuffle, expected",
    [
        (1, 1 * 4 * 9 + 2 * 4 + 4 * 6 * 9 + 2 * 6 + (6 * 4 * 4 + 1) * 10),
        (2, 4 * 4 * 9 + 2 * 4 + 4 * 6 * 9 + 2 * 6 + (6 * 2 * 2 + 1) * 10),
    ],
)
def test_the_classifiers_parameters_are_counted(unshuffle: int, expected: int) -> None:
    assert models.count_parameters(SmallCNN(1, 8, 10, [4, 6], unshuffle)) == expected


def test_the_classifier_sees_centred_pixels(make_model) -> None:
    model = make_model().eval()
    seen = []
    model.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 6, 6))
    assert seen[0][:, 0, 0, 0].tolist() == [-0.5, 0.0, 0.5]


@pytest.mark.parametrize("outputs, latent, released", [(6, 0, 10_330_880), (3, 64, 10_606_080)])
def test_the_generator_has_the_released_number_of_parameters_at_its_width(outputs, latent, released) -> None:
    with torch.device("meta"):
        assert models.count_parameters(Generator(9, outputs, 32, 256, latent)) == released


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("latent", [0, 4])
def test_the_generator_keeps_the_resolution(size: int, latent: int) -> None:
    z = torch.rand(3, latent) if latent else None
    assert Generator(6, 2, size, 4, latent)(torch.rand(3, 6, size, size), z).shape == (3, 2, size, size)


def test_the_generators_weights_start_as_released() -> None:
    with seeded_globals(Stream.of(0, "test")):
        generator = Generator(3, 2, 6, 32, latent=16).requires_grad_(False)
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.15)
            assert abs(float(layer.weight.mean())) < 0.005
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert float(layer.weight.mean()) == pytest.approx(1, abs=0.02)
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.5)


def test_the_latent_vector_moves_the_output() -> None:
    with seeded_globals(Stream.of(0, "test")):
        generator = Generator(3, 1, 6, 8, latent=4).double().eval()
    maps = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    one, other = (generator(maps, torch.full((1, 4), value, dtype=torch.float64)) for value in (-1.0, 1.0))
    assert not torch.allclose(one, other)


def test_a_residual_block_adds_its_input() -> None:
    block = ResidualBlock(3, 3).eval()
    nn.init.zeros_(block.body[3].weight)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize("channels, size", [(1, 3), (3, 32)])
def test_the_encoder_gives_means_and_positive_variances_at_every_size(channels: int, size: int) -> None:
    mean, variance = Encoder(channels, 2, 7)(torch.rand(4, channels, size, size) * 2 - 1)
    assert mean.shape == variance.shape == (4, 7)
    assert (variance > 0).all()


NAMED = {
    "resnet18": 11_173_962,
    "preact_resnet18": 11_172_170,
    "wrn_28_10": 36_479_194,
    "wrn_34_10": 46_160_474,
}


@pytest.mark.parametrize("name", NAMED)
def test_classifiers_are_built_by_name_with_their_published_sizes(name: str) -> None:
    settings = params.Model(name=name, mean=[0.5, 0.5, 0.4], std=[0.2, 0.2, 0.3])
    model = models.classifier(settings, {"shape": [3, 32, 32], "classes": list(range(10))}, seed=1)
    assert models.count_parameters(model) == NAMED[name]
    assert models.architecture(settings) == name
    x = torch.tensor([0.5, 0.5, 0.4]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(model.normalize(x), torch.zeros(1, 3, 4, 4))


def test_a_normalisation_for_other_channels_is_refused() -> None:
    settings = params.Model(name="resnet18", mean=[0.5], std=[0.2])
    with pytest.raises(UserError, match="model.mean: 1 numbers for images of 3 channels"):
        models.classifier(settings, {"shape": [3, 32, 32], "classes": [0, 1]})
