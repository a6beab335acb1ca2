"""Freezing a model, input gradients, and projected ascent."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipeline.ascent import Ascent, frozen, input_gradient
from pipeline.losses import carlini_wagner, cross_entropy
from pipeline.perturbation import L2, Linf
from pipeline.seeding import Stream


def flags(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]


class LinearLogit(nn.Module):
    """Two logits, w.x and 0, so that the best attack on class 1 is known in closed form."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        logit = (x * self.weight).flatten(1).sum(1)
        return torch.stack([logit, torch.zeros_like(logit)], 1)


@pytest.fixture
def oddly_flagged(make_model) -> nn.Module:
    """A model in training mode with one evaluating layer and one fixed parameter."""
    model = make_model().train()
    model.features[1].eval()
    model.head.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("error", [False, True])
def test_frozen_restores_every_flag_even_after_an_error(oddly_flagged, error: bool) -> None:
    before = flags(oddly_flagged)
    assert len(set(before)) == 2
    try:
        with frozen(oddly_flagged):
            assert not any(flags(oddly_flagged))
            if error:
                raise KeyError
    except KeyError:
        pass
    assert flags(oddly_flagged) == before


def test_nothing_of_the_model_changes_while_frozen(make_model, make_examples) -> None:
    model, data = make_model().train(), make_examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen(model) as fast:
        input_gradient(fast, data.x, data.y, cross_entropy)
        input_gradient(model, data.x, data.y, cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_fast_view_has_the_input_gradient_of_the_model_itself(make_model, make_examples) -> None:
    model, data = make_model(torch.float64).train(), make_examples(dtype=torch.float64)
    with frozen(model) as fast:
        gradient = input_gradient(fast, data.x, data.y, cross_entropy)
    x = data.x.clone().requires_grad_()
    nn.functional.cross_entropy(model.eval()(x), data.y, reduction="sum").backward()
    torch.testing.assert_close(gradient, x.grad, rtol=0, atol=1e-12)


def test_input_gradients_of_an_example_do_not_depend_on_its_batch(make_model, make_examples) -> None:
    model, data = make_model(torch.float64), make_examples(dtype=torch.float64)
    with frozen(model) as fast:
        together = input_gradient(fast, data.x, data.y, cross_entropy)
        alone = [input_gradient(fast, x[None], y[None], cross_entropy) for x, y in zip(data.x, data.y, strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-12)


def test_input_gradients_exist_under_no_grad_and_leave_the_images_as_they_are(make_model, make_examples) -> None:
    data = make_examples()
    with torch.no_grad(), frozen(make_model()) as fast:
        gradient = input_gradient(fast, data.x, data.y, cross_entropy)
    assert gradient.any() and not gradient.requires_grad
    assert not data.x.requires_grad and data.x.grad is None


@pytest.mark.parametrize("momentum", [None, 1.0, 0.5])
@pytest.mark.parametrize("loss", [cross_entropy, partial(carlini_wagner, confidence=50.0)], ids=["ce", "cw"])
def test_ascent_is_the_textbook_loop(make_model, make_examples, textbook_ascent, perturbations, loss, momentum) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    start = perturbations.start(data.x, Stream.of(0, "test").at(data.index)).double()
    rules = {"loss": loss, "perturbations": perturbations, "steps": 5, "step_size": 0.07, "momentum": momentum}
    with frozen(model) as fast:
        climbed = Ascent(**rules).last(fast, data.x, data.y, start)
    expected = textbook_ascent(model, data.x, data.y, start, **rules)
    torch.testing.assert_close(climbed, expected, rtol=0, atol=1e-10)


def test_no_steps_give_the_clipped_start(make_model, make_examples) -> None:
    data = make_examples()
    start = torch.full_like(data.x, 0.3)
    images = Ascent(cross_entropy, Linf(0.3), steps=0, step_size=1.0).last(make_model(), data.x, data.y, start)
    assert torch.equal(images, (data.x + 0.3).clamp(0, 1))


def test_ascent_finds_the_known_optimum_of_a_linear_model_in_linf(make_examples) -> None:
    data = make_examples(dtype=torch.float64)
    weight = Stream.of(0, "test").at(torch.tensor([0])).normal(1, 6, 6)[0].double()
    ascent = Ascent(cross_entropy, Linf(0.2), steps=20, step_size=0.05)
    images = ascent.last(LinearLogit(weight), data.x, torch.ones_like(data.y), torch.zeros_like(data.x))
    torch.testing.assert_close(images, (data.x + 0.2 * weight.sign()).clamp(0, 1))


def test_ascent_finds_the_known_optimum_of_a_linear_model_in_l2() -> None:
    weight = Stream.of(0, "test").at(torch.tensor([0])).normal(1, 6, 6)[0].double()
    x = torch.full((2, 1, 6, 6), 0.5, dtype=torch.float64)  # far enough from 0 and 1 never to be clipped
    ascent = Ascent(cross_entropy, L2(0.4), steps=20, step_size=0.05)
    images = ascent.last(LinearLogit(weight), x, torch.ones(2, dtype=torch.int64), torch.zeros_like(x))
    torch.testing.assert_close(images, x + 0.4 * weight / weight.norm())


@pytest.mark.parametrize("momentum", [None, 1.0])
def test_the_first_broken_iterate_is_the_first_of_the_textbook_loop_that_is_misclassified(
    make_model, make_examples, textbook_ascent, perturbations, momentum
) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(60, dtype=torch.float64)
    start = perturbations.start(data.x, Stream.of(0, "test").at(data.index)).double()
    rules = {"loss": cross_entropy, "perturbations": perturbations, "step_size": 0.02, "momentum": momentum}
    with frozen(model) as fast:
        found = Ascent(steps=6, **rules).first_broken(fast, data.x, data.y, start)
    path = torch.stack([textbook_ascent(model, data.x, data.y, start, steps=t, **rules) for t in range(7)], 1)
    broken = torch.stack([model(images).argmax(1) != data.y for images in path.unbind(1)], 1)
    place = torch.where(broken.any(1), broken.int().argmax(1), 6)
    assert set(place.tolist()) > {0, 6}, "some break at the start, some later, some never"
    torch.testing.assert_close(found, path[torch.arange(60), place], rtol=0, atol=1e-10)


def test_broken_examples_leave_the_batch(make_model, make_examples) -> None:
    model, data, sizes = make_model().eval(), make_examples(60), []
    model.head.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    with frozen(model) as fast:
        Ascent(cross_entropy, Linf(0.2), 6, 0.05).first_broken(fast, data.x, data.y, torch.zeros_like(data.x))
    assert sizes[0] == 60 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 60
