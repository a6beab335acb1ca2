"""Parity with foolbox on an adversarially trained model: the same parameters, the same starts, the same verdicts."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import cell, params
from pipeline.attacks import suite
from pipeline.cell import Cell
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.data.store import Split, load_split
from pipeline.params import Params
from pipeline.perturbation import L2, Linf, PerturbationSet
from pipeline.yaml_files import read_yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports names that SciPy has moved
    import eagerpy
    import foolbox

ROOT = Path(__file__).parents[1]
SETS = {"linf": Linf(0.2), "l2": L2(1.0)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nn.Module, Split, Params]]:
    """AT_PGD of the default preset, its 500 test images and its parameters."""
    p = params.parse(read_yaml(ROOT / "presets/digits.yaml"), "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parity"))
        patch.setattr(cell, "digest_code", lambda *_: "code")
        store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)
        _, model, _ = Cell(p, "at_pgd", 0).trained(torch.device("cpu"), Path("work"))
        yield model.eval(), load_split(Path("data") / p.data.name, "test"), p


def beginning_at(kind: type, start: Tensor, **settings: Any):
    """A foolbox attack whose random start is the perturbation `start`."""

    class Attack(kind):
        def get_random_start(self, x0: eagerpy.Tensor, epsilon: float) -> eagerpy.Tensor:
            return x0 + eagerpy.astensor(start)

    return Attack(**settings)


class Momentum(foolbox.attacks.LinfPGD):
    """MIM as Dong et al. 2018 write it, inside foolbox's loop.

    Foolbox's own MI-FGSM (3.3.4) takes the gradient's sign before it is accumulated, and steps along the sum itself.
    """

    velocity: Any = 0.0

    def normalize(self, gradients: eagerpy.Tensor, *, x: eagerpy.Tensor, bounds: Any) -> eagerpy.Tensor:
        self.velocity = self.velocity + gradients / gradients.abs().mean((1, 2, 3), keepdims=True)
        return self.velocity.sign()


def theirs(name: str, kind: str, attack: params.Attack, start: Tensor):
    """The foolbox attack that an attack of params.yaml should equal."""
    steps = {"steps": attack.steps, "abs_stepsize": attack.step_size, "random_start": True}
    if attack.family == "fgsm":
        single = foolbox.attacks.LinfFastGradientAttack if kind == "linf" else foolbox.attacks.L2FastGradientAttack
        return single()
    if attack.family == "mim":
        return beginning_at(Momentum, start, **steps)
    return beginning_at(foolbox.attacks.LinfPGD if kind == "linf" else foolbox.attacks.L2PGD, start, **steps)


@pytest.mark.parametrize("kind, name", [("linf", "fgsm"), ("linf", "pgd-20"), ("linf", "mim-20"), ("l2", "pgd-20")])
def test_robust_accuracy_is_foolboxs(kind: str, name: str, trained: tuple[nn.Module, Split, Params]) -> None:
    model, test, p = trained
    perturbations: PerturbationSet = SETS[kind]
    attack = p.evaluation.attacks[name]
    if kind == "l2":
        attack = attack.model_copy(update={"step_size": 0.25})
    ours = suite.judged(name, attack, p.evaluation, model, test, perturbations)
    start = perturbations.start(test.x, suite.stream(name, p.evaluation).at(test.index))
    peer = theirs(name, kind, attack, start)
    _, images, success = peer(foolbox.PyTorchModel(model, (0, 1)), test.x, test.y, epsilons=perturbations.eps)
    assert len(test.x) == 500
    assert abs(ours.broken.mean() - success.double().mean().item()) <= 0.005
    assert (ours.broken == success.numpy()).mean() >= 0.995
    holding = ~ours.broken
    norms = perturbations.norm(images - test.x).numpy()
    np.testing.assert_allclose(ours.norm[holding], norms[holding], atol=1e-4)
