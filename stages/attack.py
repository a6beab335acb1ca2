"""attack: every attack on one cell's selected checkpoint, to verdicts/METHOD/seed-N.npz."""

from pathlib import Path

import numpy as np
import torch

from pipeline import machine, models, params, perturbation
from pipeline.attacks import suite
from pipeline.data.store import Split, load_meta, load_split
from pipeline.files import digest, digest_code, digest_file, write_json, write_npz
from pipeline.models.weights import load_weights
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.verdicts import Column, Verdicts
from stages.common import WORK, cell_of_command_line, run_folder, run_stage, verdict_file

# The code a verdict depends on; part of the key under which finished columns are kept.
EVALUATION_CODE = (
    "pipeline/ascent.py",
    "pipeline/attacks",
    "pipeline/losses.py",
    "pipeline/models",
    "pipeline/perturbation.py",
    "pipeline/seeding.py",
)


def main() -> None:
    """Attack one checkpoint; columns finished earlier with the same ingredients are read back."""
    p = params.load()
    method, seed = cell_of_command_line(p, __doc__)
    device = machine.prepare(p.runtime)
    checkpoint = run_folder(method, seed) / "model.safetensors"
    data = Path("data") / p.data.name
    model = models.classifier(p.model, load_meta(data))
    load_weights(checkpoint, model, models.architecture(p.model))
    test = load_split(data, "test", device)
    target = verdict_file(method, seed)

    identity = digest_file(checkpoint)
    cache = WORK / "attack" / identity[:16]
    own_set = perturbation.source(p.threat.set)
    common = [
        p.threat.model_dump(),
        own_set and digest_file(own_set),
        p.evaluation.batch_size,
        p.evaluation.seed,
        p.evaluation.precision,
        load_meta(data)["sha256"],
        digest_code(Path(), *EVALUATION_CODE),
        machine.fingerprint(p.runtime),
    ]
    attacks, own_attacks = suite.attacks(p.evaluation), suite.own_code(p.evaluation)
    columns = {}
    with Progress(f"attack {method} seed {seed}", len(attacks)) as bar:
        for name, settings in attacks.items():
            key = digest([name, settings and settings.model_dump(), own_attacks.get(name), *common])
            columns[name] = _column(cache / f"{key[:32]}.npz", p, name, model.to(device), test)
            bar.step(f"{name} {1 - columns[name].broken.mean():.3f}")

    verdicts = Verdicts.join(columns, test.y.cpu().numpy(), test.index.cpu().numpy(), identity)
    verdicts.save(target)
    write_json(target.with_suffix(".json"), verdicts.accuracies())


def _column(cached: Path, p: Params, name: str, model: torch.nn.Module, test: Split) -> Column:
    """One attack's column, from the work folder if it is there, else computed and kept."""
    if cached.exists():
        with np.load(cached) as arrays:
            return Column(arrays["broken"], arrays["margin"], arrays["norm"])
    perturbations = perturbation.build(p.threat.set, p.threat.eps)
    column = suite.column(name, p.evaluation, model, test, perturbations)
    write_npz(cached, broken=column.broken, margin=column.margin, norm=column.norm)
    return column


if __name__ == "__main__":
    run_stage(main)
