"""Old models meet new attacks, and new attacks the conformance suite, without a stage."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline import machine, models, perturbation
from pipeline.attacks import conformance as conforming
from pipeline.attacks import suite
from pipeline.attacks.conformance import Trial
from pipeline.data.store import Split, load_meta, load_split
from pipeline.errors import UserError
from pipeline.files import digest_file
from pipeline.health import examination
from pipeline.health.examination import Finding
from pipeline.models.weights import load_released, load_weights
from pipeline.verdicts import Verdicts

if TYPE_CHECKING:
    from pipeline.params import Params

CONFORMANCE_IMAGES = 24


def conformance(p: "Params", attacks: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """Put the conformance suite to the named attacks (all of `evaluation.attacks` if none), plug-ins among them.

    They are tried on an untrained classifier and validation images, three of four labelled as it
    classifies them. Yields attack, question, and what is wrong, or None.
    """
    for name in attacks:
        _require(name, p.evaluation.attacks)
    device, folder = machine.prepare(p.runtime), Path("data") / p.data.name
    model = models.classifier(p.model, load_meta(folder)).to(device)
    images = load_split(folder, "validation", device).head(CONFORMANCE_IMAGES)
    with torch.no_grad():
        own = model.eval()(images.x).argmax(1)
    images = Split(images.x, torch.where(torch.arange(len(own), device=device) % 4 > 0, own, images.y), images.index)
    for name in attacks or p.evaluation.attacks:
        trial = Trial(name, p.evaluation.attacks[name], p.evaluation, p.threat, model, images)
        for question, problem in conforming.examine(trial):
            yield name, question, problem


def _require(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(f"--attack {name}: not in evaluation.attacks of params.yaml; there are: {', '.join(known)}")


def judge(p: "Params", checkpoint: Path, attacks: Sequence[str]) -> Verdicts:
    """Verdicts of `natural` and the named attacks (all of `evaluation.attacks` if none) on the test images.

    `UserError` for a file that is missing or holds another network, and for an attack that
    params.yaml does not have.
    """
    known = suite.attacks(p.evaluation)
    for name in attacks:
        _require(name, known)
    model, test = _loaded(p, checkpoint)
    perturbations = perturbation.build(p.threat.set, p.threat.eps)
    columns = suite.columns(p.evaluation, attacks or list(known), model, test, perturbations)
    told = {name: suite.said(p, name) for name in columns}
    return Verdicts.join(columns, test.y.cpu().numpy(), test.index.cpu().numpy(), digest_file(checkpoint), told)


def health(p: "Params", checkpoint: Path) -> Finding:
    """Every health check on a checkpoint, on the first `health.images` test images; errors as in `judge`."""
    return examination.examine(*_loaded(p, checkpoint), p)


def _loaded(p: "Params", checkpoint: Path) -> tuple[nn.Module, Split]:
    """The classifier of params.yaml with the weights of a file, and the test images, on the device.

    A `.pt` file is read as the authors' published WideResNet, anything else as safetensors of this project.
    """
    if not checkpoint.is_file():
        raise UserError(f"--checkpoint {checkpoint}: no such file")
    device, folder = machine.prepare(p.runtime), Path("data") / p.data.name
    model = models.classifier(p.model, load_meta(folder))
    if checkpoint.suffix == ".pt":
        load_released(checkpoint, model)
    else:
        load_weights(checkpoint, model, models.architecture(p.model))
    return model.to(device), load_split(folder, "test", device)
