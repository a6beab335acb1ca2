"""Descriptions of samples, against loops over pairs, samples and classes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_settings import METHODS
from torch import nn

from pipeline.perturbation import Linf
from pipeline.samplers import Drawn, Learned, Restarts, Uniform
from pipeline.seeding import Stream
from pipeline.studies import diversity
from pipeline.studies.diversity import Judged, cosine, describe, seen, variance

STREAM = Stream.of(0, "diversity")
SET = Linf(0.2)


def fixed(deltas: torch.Tensor):
    """A source that draws the same for every model; rows are told by their example."""
    return lambda model, x, labels, perturbations, noise, draws: Drawn(deltas[noise.index, :draws])


def test_every_measure_is_what_its_definition_says(make_model, make_examples) -> None:
    data, model, count = make_examples(), make_model().eval(), 5
    deltas = 0.2 * (2 * STREAM.at(torch.arange(10)).uniform(count, 1, 6, 6) - 1)
    found = describe(fixed(deltas), model, data.x, data.y, SET, STREAM, count)
    for n in range(10):
        images = [(data.x[n] + deltas[n, s]).clamp(0, 1) for s in range(count)]
        with torch.no_grad():
            logits = [model(image[None])[0].double().numpy() for image in images]
        losses = [np.log(np.exp(z).sum()) - z[data.y[n]] for z in logits]
        wrong = [z.argmax() != int(data.y[n]) for z in logits]
        assert float(found.adversarial_loss[n]) == pytest.approx(np.mean(losses), rel=1e-4)
        assert float(found.worst_loss[n]) == pytest.approx(max(losses), rel=1e-4)
        assert float(found.fooled[n]) == pytest.approx(np.mean(wrong))
        assert float(found.broken[n]) == any(wrong)
        assert float(found.classes[n]) == len({z.argmax() for z in logits})
        clipped = [(image - data.x[n]).double().flatten().numpy() for image in images]
        free = [delta.double().flatten().numpy() for delta in deltas[n]]
        for name, vectors in (("", free), ("seen_", clipped)):
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(vectors, 2)]
            assert float(getattr(found, f"{name}cosine")[n]) == pytest.approx(np.mean(cosines), abs=1e-6)
            spread = np.mean(np.var(np.array(vectors) / 0.2, axis=0, ddof=1))
            assert float(getattr(found, f"{name}diversity")[n]) == pytest.approx(spread, rel=1e-5)
    assert found.entropy is None and "entropy" not in found.means()
    assert found.means()["fooled"] == pytest.approx(float(found.fooled.mean()))


@given(
    vectors=st.lists(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=3, max_size=3), min_size=2, max_size=6),
    factor=st.floats(0.1, 10),
)
def test_cosine_knows_directions_alone_and_variance_lengths(vectors: list[list[float]], factor: float) -> None:
    deltas = torch.tensor(vectors, dtype=torch.float64).view(1, -1, 1, 1, 3)
    value, spread = float(cosine(deltas)), float(variance(deltas))
    assert -1 / (len(vectors) - 1) - 1e-9 <= value <= 1 + 1e-9
    assert float(cosine(factor * deltas)) == pytest.approx(value, abs=1e-9)
    assert float(variance(factor * deltas)) == pytest.approx(factor**2 * spread, rel=1e-9, abs=1e-12)
    assert float(variance(deltas[:, :1].expand_as(deltas))) == pytest.approx(0, abs=1e-12)


def test_uniform_noise_is_known_in_closed_form(make_model, make_examples) -> None:
    data = make_examples(40)
    found = describe(Uniform(), make_model(), data.x, data.y, SET, STREAM, 50).means()
    assert found["diversity"] == pytest.approx(1 / 3, rel=0.01)
    assert found["cosine"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("sampler", [Restarts(3, 0.08), Learned.with_settings(METHODS["adt_exp"])])
def test_neither_the_batch_nor_the_memory_bound_matters(sampler, make_model, make_examples, monkeypatch) -> None:
    data, model = make_examples(), make_model()
    whole = describe(sampler, model, data.x, data.y, SET, STREAM, 3)
    parts = describe(sampler, model, data.x, data.y, SET, STREAM, 3, batch_size=4)
    monkeypatch.setattr(diversity, "_HELD", 3 * 36 * 2)
    bounded = describe(sampler, model, data.x, data.y, SET, STREAM, 3)
    for other in (parts, bounded):
        for name, value in vars(whole).items():
            if value is not None:
                torch.testing.assert_close(getattr(other, name), value, rtol=1e-3, atol=1e-4)


def test_more_lambda_means_more_varied_and_less_harmful_samples(make_model, make_examples) -> None:
    data, model = make_examples(30), make_model()
    settings = METHODS["adt_exp"].model_copy(update={"accumulate": False, "steps": 7, "initial_rho": -1.0})
    samplers = (Learned.with_settings(settings.model_copy(update={"lam": lam})) for lam in (0.0, 1.0))
    weak, strong = (describe(s, model, data.x, data.y, SET, STREAM, 20).means() for s in samplers)
    assert weak["diversity"] < strong["diversity"]
    assert weak["entropy"] < strong["entropy"]
    assert weak["adversarial_loss"] > strong["adversarial_loss"]


@pytest.mark.usefixtures("untouched_random_state")
def test_describing_is_repeatable_and_leaves_the_model_as_it_was(make_model, make_examples) -> None:
    data, model = make_examples(), make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler = Learned.with_settings(METHODS["adt_exp"])
    first, second = (describe(sampler, model, data.x, data.y, SET, STREAM, 2).means() for _ in range(2))
    assert first == second
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_tie_fools_and_what_is_clipped_away_is_not_seen() -> None:
    tied = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(tied[1].weight), nn.init.zeros_(tied[1].bias)
    x, deltas = torch.tensor([0.0, 1.0, 0.5, 0.95]).view(1, 1, 2, 2), torch.full((1, 2, 1, 2, 2), 0.1)
    assert Judged.of(tied, x, torch.tensor([1]), deltas).fooled.all()
    assert seen(x, deltas)[0, 0].flatten().tolist() == pytest.approx([0.1, 0, 0.1, 0.05])
