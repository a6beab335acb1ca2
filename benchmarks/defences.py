"""Does the health stage tell broken defences from sound ones? `python -m benchmarks.defences`, on params.yaml.

Trained with every seed of `matrix.seeds`: AT_PGD and TRADES, which should pass; undefended training, which is
weak but hides nothing; FeaScatter, whose finding is the question. Then defences that are broken on purpose:
logits times 1e4 (saturates float32), images rounded to five grey levels (no gradient), a layer that adds noise,
and FGSM training of the label's loss without a random start, in a set so large that it learns to mislead one
step (label leaking). Every finding is on the first `health.images` test images.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import command, timing
from pipeline import machine, params
from pipeline.cell import Cell
from pipeline.data.store import load_split
from pipeline.files import write_json
from pipeline.health.examination import Finding, examine
from pipeline.params import Params

WORK = Path(".work/defences")
LEAKING_EPS = 0.4  # twice the preset's: where single-step training of small networks on digits collapses


class Wrapped(nn.Module):
    """A model with something done to its images before, or to its logits after."""

    def __init__(self, model: nn.Module, before: Callable[[Tensor], Tensor] | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.model, self.before, self.scale = model, before, scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.scale * self.model(x if self.before is None else self.before(x))


def scaled(model: nn.Module) -> nn.Module:
    """Logits times 1e4: softmax saturates, and with it the gradient of the cross-entropy vanishes."""
    return Wrapped(model, scale=1e4)


def rounded(model: nn.Module) -> nn.Module:
    """Images rounded to five grey levels: the gradient is zero everywhere."""
    return Wrapped(model, lambda x: (4 * x).round() / 4)


def noisy(model: nn.Module) -> nn.Module:
    """Noise on the images in every pass, from torch's global generator."""
    return Wrapped(model, lambda x: x + 0.1 * torch.randn_like(x))


def leaking(p: Params) -> Params:
    """AT_FGSM on the label's loss from the image itself, in a set of `LEAKING_EPS`, all steps scaled with the set."""
    factor = LEAKING_EPS / p.threat.eps
    fgsm = p.methods.at_fgsm.model_copy(update={"target": "label", "random_start": False, "clean_weight": 0.0})
    optimizer = p.train.optimizer.model_copy(update={"weight_decay": 0.0})
    attacks = {
        name: attack.model_copy(update={"step_size": attack.step_size and factor * attack.step_size})
        if attack.family != "adt_exp"  # whose steps are not in units of the image
        else attack
        for name, attack in p.evaluation.attacks.items()
    }
    return p.model_copy(
        update={
            "threat": p.threat.model_copy(update={"eps": LEAKING_EPS}),
            "methods": p.methods.model_copy(update={"at_fgsm": fgsm}),
            "train": p.train.model_copy(update={"epochs": 2 * p.train.epochs, "optimizer": optimizer}),
            "evaluation": p.evaluation.model_copy(update={"attacks": attacks}),
        }
    )


def trained(p: Params, method: str, seed: int, device: torch.device) -> nn.Module:
    """The selected model of one run; of one that leaks, the last: selection on PGD would hide the leak."""
    cell = Cell(p, method, seed)
    if method != "at_fgsm":
        return cell.trained(device, WORK)[1]
    return cell.train(device, WORK / cell.fingerprint()[:32] / "state.pt")[1]


def subjects(p: Params, device: torch.device) -> Iterator[tuple[str, int, Params, nn.Module]]:
    """Name, seed, parameters and model of every defence."""
    for seed in p.matrix.seeds:
        models = {name: trained(p, name, seed, device) for name in ("standard", "at_pgd", "trades", "feature_scatter")}
        yield from ((name, seed, p, model) for name, model in models.items())
        for name, broken in (("logits x 1e4", scaled), ("rounded images", rounded), ("noisy images", noisy)):
            yield name, seed, p, broken(models["at_pgd"])
        yield f"leaking, eps {LEAKING_EPS:g}", seed, leaking(p), trained(leaking(p), "at_fgsm", seed, device)


def row(name: str, seed: int, found: Finding) -> dict[str, Any]:
    """One defence for the record."""
    return {
        "defence": name,
        "seed": seed,
        "failed": found.failed,
        "accuracies": {attack: round(100 * value, 2) for attack, value in found.accuracies.items()},
        "checks": found.checks,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the findings."""
    parser = command.parser("defences", __doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    command.run(_run, parser, arguments)


def _run(parsed: argparse.Namespace) -> None:
    p = params.load()
    device = machine.prepare(p.runtime)
    test = load_split(Path("data") / p.data.name, "test", device)
    facts = timing.conditions(device) | {"preset": p.preset, "seeds": p.matrix.seeds, "images": p.health.images}
    print("\n".join(f"{name:12} {value}" for name, value in facts.items()), end="\n\n")
    found = []
    for name, seed, settings, model in subjects(p, device):
        found.append(row(name, seed, examine(model, test, settings)))
        accuracies = {k: v for k, v in found[-1]["accuracies"].items() if k in ("natural", p.health.base, "worst-case")}
        print(f"{name:18} seed {seed}: fails {found[-1]['failed'] or 'nothing'}; {accuracies}", flush=True)
    if parsed.output:
        write_json(parsed.output, {"conditions": facts, "rows": found})


if __name__ == "__main__":
    main()
