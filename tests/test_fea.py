"""FeaAttack against the released loop written out image by image and copy by copy, and the features it steers by."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.ascent import Inner, frozen
from pipeline.attacks import loop
from pipeline.attacks.fea import Fea
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.models.features import features
from pipeline.models.folding import folded
from pipeline.models.lowering import Lowered
from pipeline.models.wide_resnet import WideResNet
from pipeline.perturbation import Linf, PerturbationSet
from pipeline.seeding import Noise, Stream, seeded_globals

STREAM = Stream.of(0, "attack", "fea")
STEPS, STEP_SIZE, TARGETS = 3, 0.05, 3


class Diamond(Linf):
    """A user's set: the l1 ball, whose steepest step is along one coordinate; its projection merely shrinks."""

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        return self.project(noise.normal(*like.shape[1:]))

    def direction(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        largest = nn.functional.one_hot(flat.abs().argmax(1), flat.shape[1]).bool()
        return torch.where(largest, flat.sign(), 0).view_as(gradient)

    def project(self, delta: Tensor) -> Tensor:
        return delta * (self.eps / self.norm(delta)).clamp_max(1).view(-1, 1, 1, 1)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).sum(1)


def noise_of(data: Split) -> Noise:
    return STREAM.at(data.index)


def run(attack: Fea, model: nn.Module, data: Split, threat: PerturbationSet) -> Tensor:
    with frozen(model) as view:
        return attack(view, data.x, data.y, threat, noise_of(data))


def pooled(make_examples: Callable[..., Split], **changes) -> Split:
    """Images to draw targets from, which are not those attacked."""
    return make_examples(20, seed=1, **changes)


def labelled(model: nn.Module, data: Split) -> Split:
    """The images under the labels that the model gives them: no example is broken to begin with."""
    with torch.no_grad():
        return Split(data.x, model(data.x).argmax(1), data.index)


def without_preference(model: nn.Module) -> nn.Module:
    """A classifier that says class 0 of every image."""
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([1.0, *[0.0] * (len(model.head.bias) - 1)])
    return model


# The transcription


def released_search(
    attack: Fea, model: nn.Module, x: Tensor, y: Tensor, starts: Tensor, targets: Tensor, threat: PerturbationSet
) -> tuple[Tensor, int | None]:
    """feature_attack.py for one image x (C, H, W): the image found, and the iterate that broke it (None: none did).

    Each copy by itself descends its own 1 - cos, and there is a last look at the copies after their last step.
    """

    @torch.no_grad()
    def margin(image: Tensor) -> float:
        logits = model(image[None])[0].tolist()
        return logits.pop(y) - max(logits)

    copies = [(x + start).clamp(0, 1) for start in starts]
    for step in range(attack.steps + 1):
        margins = [margin(image) for image in copies]
        least = copies[margins.index(min(margins))]
        if min(margins) <= 0:
            return least, step
        for place, (image, target) in enumerate(zip(copies, targets, strict=True)):
            image = image.clone().requires_grad_()
            reached, wanted = (model.features(some[None] - 0.5).flatten() for some in (image, target))
            distance = 1 - (reached @ wanted) / (reached.norm() * wanted.norm())
            (gradient,) = torch.autograd.grad(distance, image)
            if isinstance(threat, Linf):
                delta = (image.data - attack.step_size * gradient.sign() - x).clip(-threat.eps, threat.eps)
            else:
                delta = image.data - attack.step_size * gradient / gradient.norm() - x
                delta = delta * min(1.0, threat.eps / float(delta.norm()))
            copies[place] = (x + delta).clip(0, 1)
    return least, None


def transcribed(attack: Fea, model: nn.Module, data: Split, threat: PerturbationSet) -> tuple[Tensor, list[int | None]]:
    """The transcription on every image, from the same starts and towards the same targets."""
    noise = noise_of(data)
    starts = [threat.start(data.x, noise.branch(number)).to(data.x.dtype) for number in range(attack.targets)]
    targets = attack.pool.x[attack.draw(data.y, noise)]
    rows = zip(data.x, data.y, torch.stack(starts, 1), targets, strict=True)
    images, steps = zip(*(released_search(attack, model, *row, threat) for row in rows), strict=True)
    return torch.stack(images), list(steps)


@pytest.mark.parametrize("eps_share", [0.1, 0.4, 1.0])
def test_it_is_the_released_loop_image_by_image_and_copy_by_copy(
    eps_share: float, perturbations, make_model, make_examples
) -> None:
    model, threat = make_model(torch.float64).eval(), type(perturbations)(eps_share * perturbations.eps)
    data = labelled(model, make_examples(12, dtype=torch.float64))
    attack = Fea(STEPS, threat.eps / 3, TARGETS, pooled(make_examples, dtype=torch.float64))
    expected, steps = transcribed(attack, model, data, threat)
    images = run(attack, model, data, threat)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-9)
    assert None in steps or eps_share == 1


def test_every_iterate_counts_from_the_start_to_the_one_after_the_last_step(
    perturbations, make_model, make_examples
) -> None:
    """The released code, whose predictions are those before the last step, sees all but the last."""
    model, threat = make_model(torch.float64).eval(), type(perturbations)(0.6 * perturbations.eps)
    data = labelled(model, make_examples(80, dtype=torch.float64))
    attack = Fea(STEPS, threat.eps / 3, TARGETS, pooled(make_examples, dtype=torch.float64))
    _, steps = transcribed(attack, model, data, threat)
    assert {0, 1, STEPS, None} <= set(steps)
    column = loop.run(attack, model, data, threat, STREAM, 30)
    assert column.broken.tolist() == [step is not None for step in steps]


# What it returns and what it asks


def test_a_broken_example_leaves_and_the_others_take_every_step(perturbations, make_model, make_examples) -> None:
    model, data, seen = without_preference(make_model()), make_examples(), []
    data.y[:] = torch.arange(len(data.y)) % 2
    model.register_forward_pre_hook(lambda layer, inputs: seen.append(len(inputs[0])))
    run(Fea(STEPS, STEP_SIZE, TARGETS, pooled(make_examples)), model, data, perturbations)
    wanted, first, *later = seen
    assert wanted == first == TARGETS * len(data.x)
    assert later == [TARGETS * int((data.y == 0).sum())] * STEPS


@pytest.mark.parametrize("group", [1, 4, 7, 1024])
def test_no_more_images_than_the_group_go_through_the_model_and_it_does_not_matter(
    group: int, perturbations, make_model, make_examples
) -> None:
    model, data, seen = make_model(torch.float64).eval(), make_examples(dtype=torch.float64), []
    pool = pooled(make_examples, dtype=torch.float64)
    expected = run(Fea(STEPS, STEP_SIZE, TARGETS, pool), model, data, perturbations)
    model.register_forward_pre_hook(lambda layer, inputs: seen.append(len(inputs[0])))
    images = run(Fea(STEPS, STEP_SIZE, TARGETS, pool, group), model, data, perturbations)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-9)
    assert max(seen) <= max(group, TARGETS)


def test_gradients_are_those_of_the_steps(perturbations, make_model, make_examples) -> None:
    model, data = without_preference(make_model()), make_examples(6)
    data.y[:] = 0
    column = loop.run(Fea(STEPS, STEP_SIZE, TARGETS, pooled(make_examples)), model, data, perturbations, STREAM, 6)
    assert column.gradient_evaluations == STEPS * TARGETS * 6
    assert column.forward_passes == 2 * TARGETS * 6  # the targets, and the last look


@pytest.mark.parametrize("threat", [Linf(0.1), Diamond(2.0)], ids=["linf", "own"])
def test_more_targets_break_no_less(threat: PerturbationSet, make_model, make_examples) -> None:
    model, pool = make_model(torch.float64).eval(), pooled(make_examples, dtype=torch.float64)
    data = labelled(model, make_examples(60, dtype=torch.float64))
    few, some, many = (
        loop.run(Fea(STEPS, STEP_SIZE, targets, pool), model, data, threat, STREAM, 60).broken for targets in (1, 3, 12)
    )
    assert (some >= few).all() and (many >= some).all()
    assert 0 < few.sum() < many.sum() < len(data.x)


def test_where_nothing_breaks_the_copy_of_least_margin_after_all_steps_is_returned(
    perturbations, make_model, make_examples
) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(6, dtype=torch.float64)
    model.head.bias.data[0] += 100
    data.y[:] = 0
    attack = Fea(STEPS, STEP_SIZE, TARGETS, pooled(make_examples, dtype=torch.float64))
    expected, steps = transcribed(attack, model, data, perturbations)
    assert set(steps) == {None}
    torch.testing.assert_close(run(attack, model, data, perturbations), expected, rtol=0, atol=1e-9)


def test_dead_features_leave_images_at_their_starts_and_finite(perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples()
    nn.init.constant_(model.features[-3].bias, -100.0)  # before the last ReLU: every feature is 0
    assert not features(model, data.x)[1].any()
    data.y[:] = model(data.x).argmax(1)  # the same for all images, whose copies hold
    images = run(Fea(STEPS, STEP_SIZE, 1, pooled(make_examples)), model, data, perturbations)
    start = perturbations.start(data.x, noise_of(data).branch(0))
    torch.testing.assert_close(images, (data.x + start).clamp(0, 1), rtol=0, atol=1e-6)


# Targets


def test_targets_are_of_other_classes_and_come_from_all_of_them(make_examples) -> None:
    data, pool = make_examples(30), pooled(make_examples)
    places = Fea(1, 0.1, 50, pool).draw(data.y, noise_of(data))
    assert places.shape == (30, 50)
    assert (pool.y[places] != data.y[:, None]).all()
    for label, row in zip(data.y, places, strict=True):
        assert set(row.tolist()) <= set(torch.nonzero(pool.y != label).flatten().tolist())
    assert set(places.flatten().tolist()) == set(range(len(pool.y)))


def test_targets_are_uniform_with_replacement(make_examples) -> None:
    data, pool = make_examples(4000), pooled(make_examples)
    data.y[:] = 0
    others = torch.nonzero(pool.y != 0).flatten()
    places = Fea(1, 0.1, 5, pool).draw(data.y, noise_of(data))
    share = torch.bincount(places.flatten(), minlength=len(pool.y))[others] / places.numel()
    torch.testing.assert_close(share, torch.full_like(share, 1 / len(others)), rtol=0.15, atol=0)
    twice = (places.sort(1).values.diff(dim=1) == 0).any(1)
    assert twice.any() and not twice.all()


def test_the_order_of_the_pool_does_not_matter(perturbations, make_model, make_examples) -> None:
    data, pool = make_examples(), pooled(make_examples)
    back = Split(pool.x.flip(0), pool.y.flip(0), pool.index.flip(0))
    forth, turned = (
        run(Fea(STEPS, STEP_SIZE, TARGETS, some), make_model().eval(), data, perturbations) for some in (pool, back)
    )
    assert torch.equal(forth, turned)


def test_an_examples_targets_do_not_depend_on_its_batch(make_examples) -> None:
    data, attack = make_examples(), Fea(1, 0.1, TARGETS, pooled(make_examples))
    together = attack.draw(data.y, noise_of(data))
    some = torch.tensor([7, 2])
    assert torch.equal(attack.draw(data.y[some], noise_of(data).rows(some)), together[some])


def test_the_attacked_images_may_be_the_pool(perturbations, make_model, make_examples) -> None:
    data = make_examples()
    column = loop.run(Fea(STEPS, STEP_SIZE, TARGETS, data), make_model(), data, perturbations, STREAM, 4)
    assert column.broken.any()


def test_a_pool_of_one_class_is_refused_in_one_line(perturbations, make_model, make_examples) -> None:
    data, pool = make_examples(), pooled(make_examples)
    data.y[:] = pool.y[:] = 2
    with pytest.raises(UserError, match=re.escape("attack fea: every image to draw targets from is of class 2")):
        run(Fea(STEPS, STEP_SIZE, TARGETS, pool), make_model(), data, perturbations)


def test_a_users_own_set_is_kept_to(make_model, make_examples) -> None:
    data, threat = make_examples(), Diamond(2.0)
    images = run(Fea(STEPS, 0.5, TARGETS, pooled(make_examples)), make_model(), data, threat)
    assert images.min() >= 0 and images.max() <= 1
    assert (threat.norm(images - data.x) <= threat.eps + 1e-6).all()


# Penultimate features


def test_features_are_what_the_head_makes_logits_of(make_model, make_examples) -> None:
    model, x = make_model(torch.float64).eval(), make_examples(dtype=torch.float64).x
    logits, seen = features(model, x)
    torch.testing.assert_close(seen, model.features(x - 0.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen @ model.head.weight.T + model.head.bias, logits, rtol=0, atol=1e-12)


def test_features_of_a_wide_residual_network_are_pooled() -> None:
    with seeded_globals(Stream.of(0, "test")):
        model = WideResNet(10, 10, 3, 5).eval()
    x = STREAM.at(torch.arange(2)).uniform(3, 8, 8)
    logits, seen = features(model, x)
    assert seen.shape == (2, 640)
    torch.testing.assert_close(model.head(seen), logits)


def test_features_carry_a_gradient_to_the_image(make_model, make_examples) -> None:
    model, x = make_model(torch.float64).eval(), make_examples(dtype=torch.float64).x.requires_grad_()
    (got,) = torch.autograd.grad(features(model, x)[1].square().sum(), x)
    (expected,) = torch.autograd.grad(model.features(x - 0.5).square().sum(), x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


VIEWS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda model: model,
    "folded": folded,
    "counted": lambda model: loop.Counted(folded(model)),
    "float32, channels last": lambda model: Lowered(folded(model), torch.float32),
    "bfloat16": lambda model: loop.Counted(Lowered(folded(model), torch.bfloat16)),
}


@pytest.fixture(params=VIEWS.values(), ids=VIEWS.keys())
def view(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    return request.param


def hooks(model: nn.Module) -> list[int]:
    return [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in model.modules()]


def test_features_of_a_view_are_those_of_the_model_in_the_images_dtype(view, make_model, make_examples) -> None:
    model, x = make_model().eval(), make_examples().x
    logits, seen = features(view(model), x)
    assert logits.dtype == seen.dtype == torch.float32
    tolerance = 0.1 if view is VIEWS["bfloat16"] else 1e-5
    torch.testing.assert_close(seen, model.features(x - 0.5).flatten(1), rtol=0, atol=tolerance)


def test_no_hook_stays_on_the_view_or_the_model(view, make_model, make_examples) -> None:
    model, x = make_model().eval(), make_examples().x
    model.head.register_forward_pre_hook(lambda layer, inputs: None)  # one of the user's own
    looked_at, before = view(model), hooks(model)
    features(looked_at, x)
    assert hooks(model) == before and sum(hooks(looked_at)) == 1


def test_no_hook_stays_after_a_model_fails(view, make_model, make_examples) -> None:
    model, x = make_model().eval(), make_examples().x
    looked_at = view(model)
    with pytest.raises(RuntimeError):
        features(looked_at, x.repeat(1, 2, 1, 1))  # two channels
    assert not any(hooks(model)) and not any(hooks(looked_at))


def test_the_last_of_several_linear_layers_counts(make_examples) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
    x = make_examples().x
    assert torch.equal(features(model, x)[1], model[:3](x))


def test_features_in_more_dimensions_are_flattened(make_examples) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3), nn.AdaptiveAvgPool2d((1, 3)))
    x = make_examples().x
    assert torch.equal(features(model, x)[1], model[0](x).flatten(1))


def test_a_model_without_a_linear_layer_is_refused(make_examples) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten())
    with pytest.raises(UserError, match="need a model with a linear layer"):
        features(model, make_examples().x)


def test_a_model_that_does_not_use_its_last_linear_layer_is_refused(make_model, make_examples) -> None:
    model = make_model()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(UserError, match="uses its last linear layer"):
        features(model, make_examples().x)


def test_it_runs_on_a_model_of_low_precision(perturbations, make_model, make_examples) -> None:
    data, attack = make_examples(), Fea(STEPS, STEP_SIZE, TARGETS, pooled(make_examples))
    loop.run(attack, make_model(), data, perturbations, STREAM, 4, Inner(precision="bf16"))
