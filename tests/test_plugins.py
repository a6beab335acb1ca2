"""The README's example of a perturbation set, taken from the page and used as a user would."""

import importlib
import math
import re
from pathlib import Path

import pytest
import torch
from small_settings import METHODS
from torch import Tensor

from pipeline import adversaries, perturbation
from pipeline.ascent import Ascent, frozen
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream

README = (Path(__file__).parents[1] / "README.md").read_text()
EPS = 0.2


@pytest.fixture
def fading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PerturbationSet:
    """The example, imported from a file of its own."""
    section = README.split("## Add a perturbation set")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    (tmp_path / "readme_example.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return perturbation.build("readme_example:Fading", EPS)


@pytest.fixture
def deltas() -> Tensor:
    return 0.5 * Stream.of(0, "test").at(torch.arange(20)).normal(1, 6, 6).double()


def radii(size: int) -> Tensor:
    """The radius of every pixel, by the words of the example: eps in the centre, a quarter of it in the corners."""
    place = [2 * i / (size - 1) - 1 for i in range(size)]
    return torch.tensor([[EPS * (1 - 0.375 * (a * a + b * b)) for b in place] for a in place]).double()


def test_the_set_is_what_its_docstring_says(fading: PerturbationSet, deltas: Tensor) -> None:
    allowed = radii(6)
    assert allowed[0, 0] == pytest.approx(EPS / 4)
    torch.testing.assert_close(fading.project(deltas), deltas.clamp(-allowed, allowed), rtol=0, atol=1e-6)
    inside = (deltas.abs() <= allowed).flatten(1).all(1)
    assert ((fading.norm(deltas) <= EPS) == inside).all()
    start = fading.start(deltas.float(), Stream.of(0, "start").at(torch.arange(20)))
    assert (start.abs() <= allowed + 1e-6).all() and (start.abs().amax(0) > 0.7 * allowed).all()


def test_the_log_determinant_is_the_jacobians(fading: PerturbationSet, deltas: Tensor) -> None:
    u = 3 * deltas[:2]
    _, log_det = fading.squash(u)
    for row, value in zip(u, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: fading.squash(v[None])[0][0], row)
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian.view(36, 36))[1]), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_it(method: str, fading: PerturbationSet, make_model, make_examples) -> None:
    data, model = make_examples(), make_model()
    adversary = adversaries.build(method, METHODS[method], fading, 1, 6)
    images = adversary(model, data.x, data.y, Stream.of(0, "test").at(data.index)).x
    assert (fading.norm(images - data.x) <= EPS + 1e-6).all()
    assert images.min() >= 0 and images.max() <= 1


def test_attacks_stay_in_it_and_do_harm(fading: PerturbationSet, make_model, make_examples) -> None:
    data, model = make_examples(30), make_model().eval()
    noise = Stream.of(0, "test").at(data.index)
    with frozen(model) as fast:
        images = Ascent(cross_entropy, fading, 10, 0.05).last(fast, data.x, data.y, fading.start(data.x, noise))
        before, after = (float(cross_entropy(fast(x), data.y).mean()) for x in (data.x, images))
    assert (fading.norm(images - data.x) <= EPS + 1e-6).all()
    assert after > before and math.isfinite(after)
