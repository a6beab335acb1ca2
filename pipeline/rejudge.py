"""Old models meet new attacks: any checkpoint of the classifier in params.yaml, from here or from elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import machine, models, perturbation
from pipeline.attacks import suite
from pipeline.data.store import load_meta, load_split
from pipeline.errors import UserError
from pipeline.files import digest_file
from pipeline.models.weights import load_released, load_weights
from pipeline.verdicts import NATURAL, Verdicts

if TYPE_CHECKING:
    from pipeline.params import Params


def judge(p: "Params", checkpoint: Path, attacks: Sequence[str]) -> Verdicts:
    """Verdicts of `natural` and the named attacks (all of `evaluation.attacks` if none) on the test images.

    A `.pt` file is read as the authors' published WideResNet, anything else as safetensors of
    this project. `UserError` for a file that is missing or holds another network, and for
    an attack that params.yaml does not have.
    """
    known = suite.attacks(p.evaluation)
    for name in attacks:
        if name not in known:
            raise UserError(f"--attack {name}: not in evaluation.attacks of params.yaml; there are: {', '.join(known)}")
    if not checkpoint.is_file():
        raise UserError(f"--checkpoint {checkpoint}: no such file")
    device, folder = machine.prepare(p.runtime), Path("data") / p.data.name
    model = models.classifier(p.model, load_meta(folder))
    if checkpoint.suffix == ".pt":
        load_released(checkpoint, model)
    else:
        load_weights(checkpoint, model, models.architecture(p.model))
    model, test = model.to(device), load_split(folder, "test", device)
    perturbations = perturbation.build(p.threat.set, p.threat.eps)
    chosen = dict.fromkeys([NATURAL, *(attacks or known)])
    columns = {name: suite.column(name, p.evaluation, model, test, perturbations) for name in chosen}
    return Verdicts.join(columns, test.y.cpu().numpy(), test.index.cpu().numpy(), digest_file(checkpoint))
