"""What many tests need: tiny images, a tiny classifier, both perturbation sets, and a watch on global random state."""

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from pipeline.data.store import Split
from pipeline.models.small import SmallCNN
from pipeline.perturbation import L2, Linf, PerturbationSet
from pipeline.seeding import Noise, Stream, seeded_globals

settings.register_profile("project", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def untouched_random_state() -> Iterator[None]:
    """Fails the test if anything in it moved a global random state."""
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    yield
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.fixture
def classes() -> int:
    """How many classes there are; tests that need more override this."""
    return 3


@pytest.fixture
def make_examples(classes: int) -> Callable[..., Split]:
    """Random images of 6x6 with some pixels exactly 0 and 1, and indices that are not 0..N-1."""

    def make(count: int = 10, dtype: torch.dtype = torch.float32, seed: int = 0) -> Split:
        rows = Stream.of(seed, "test images").at(torch.arange(count))
        x = (rows.uniform(1, 6, 6) * 1.4 - 0.2).clamp(0, 1)
        y = (rows.uniform(1, draw=1)[:, 0] * classes).long()
        return Split(x.to(dtype), y, 1000 - 7 * torch.arange(count))

    return make


@pytest.fixture
def make_model(classes: int) -> Callable[..., nn.Module]:
    """A small classifier of 6x6 images whose batch norms have seen something; freshly built models are equal."""

    def make(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        with seeded_globals(Stream.of(seed, "test model")):
            model = SmallCNN(1, 6, classes, [4, 6], unshuffle=1)
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.1)
                    layer.running_var.uniform_(0.1, 0.3)
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    nn.init.normal_(layer.bias, 0, 0.1)
        return model.to(dtype)

    return make


@pytest.fixture(params=[Linf(0.2), L2(0.8)], ids=["linf", "l2"])
def perturbations(request: pytest.FixtureRequest) -> PerturbationSet:
    return request.param


@pytest.fixture
def double_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers come as float64 (of the same bits), so that a whole step can be done in float64."""
    single = Noise.uniform
    monkeypatch.setattr(Noise, "uniform", lambda self, *shape, draw=0: single(self, *shape, draw=draw).double())


@pytest.fixture
def textbook_ascent() -> Callable[..., Tensor]:
    """PGD and MIM written out: a clipped start, gradient at the clipped image, running sum, step, projection, clip."""

    def lengths(v: Tensor) -> Tensor:
        return v.square().sum((1, 2, 3), keepdim=True).sqrt()

    def climb(model, x, labels, delta, loss, perturbations, steps, step_size, momentum=None) -> Tensor:
        eps, velocity = perturbations.eps, torch.zeros_like(x)
        delta = (x + delta).clamp(0, 1) - x
        for _ in range(steps):
            image = (x + delta).clamp(0, 1).requires_grad_()
            g = torch.autograd.grad(loss(model(image), labels).sum(), image)[0]
            if momentum is not None:
                g = velocity = momentum * velocity + g / g.abs().mean((1, 2, 3), keepdim=True)
            if isinstance(perturbations, Linf):
                delta = (delta + step_size * g.sign()).clip(-eps, eps)
            else:
                delta = delta + step_size * g / lengths(g)
                delta = torch.where(lengths(delta) > eps, eps * delta / lengths(delta), delta)
            delta = (x + delta).clamp(0, 1) - x
        return x + delta

    return climb


@pytest.fixture
def linear_problem() -> tuple[nn.Module, Split, Callable[[PerturbationSet], Tensor]]:
    """A linear classifier of two classes, images that no attack can clip, and their exact least margins in a set."""
    rows = Stream.of(0, "linear problem").at(torch.arange(100))
    x = 0.5 + 0.2 * (2 * rows.uniform(1, 6, 6).double() - 1)
    y = (rows.uniform(1, draw=1)[:, 0] > 0.5).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    model[1].weight.data = Stream.of(1, "linear problem").at(torch.arange(2)).normal(36).double()
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)
    contrast = (model[1].weight[1] - model[1].weight[0]).detach()
    margins = (2 * y - 1) * ((x - 0.5).flatten(1) @ contrast)

    def least_margins(perturbations: PerturbationSet) -> Tensor:
        dual = 1 if isinstance(perturbations, Linf) else 2
        return margins - perturbations.eps * torch.linalg.vector_norm(contrast, dual)

    return model, Split(x, y, torch.arange(100)), least_margins


@pytest.fixture(scope="session")
def committed() -> Callable[[str], bytes]:
    """The content of a file in the last commit: what is published, whatever a user changed since."""

    def read(path: str) -> bytes:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=root, capture_output=True, check=True).stdout

    return read
