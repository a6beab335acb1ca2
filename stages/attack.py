"""attack: every attack on one cell's selected checkpoint, to verdicts/METHOD/seed-N.npz.

With `evaluation.devices` above 1 over so many GPUs, or cores, as there are; torchrun may start the processes, too.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline import live, machine, models, parallel, perturbation
from pipeline.attacks import suite
from pipeline.data.store import Split, load_meta, load_split
from pipeline.files import digest, digest_code, digest_file, write_json
from pipeline.models.weights import load_weights
from pipeline.parallel import ALONE, World
from pipeline.progress import Progress
from pipeline.verdicts import NATURAL, Column, Verdicts
from stages.common import WORK, cell_of_command_line, run_folder, run_stage, verdict_file

if TYPE_CHECKING:
    from pipeline.params import Params

# The code a verdict depends on; part of the key under which finished columns are kept.
EVALUATION_CODE = (
    "pipeline/ascent.py",
    "pipeline/attacks",
    "pipeline/distribution.py",
    "pipeline/losses.py",
    "pipeline/models",
    "pipeline/perturbation.py",
    "pipeline/seeding.py",
)


def main() -> None:
    """Attack the checkpoint of the cell of the command line with params.yaml."""
    from pipeline import params  # checked by pydantic, which a bare node lacks

    p = params.load()
    method, seed = cell_of_command_line(p, __doc__)
    device = machine.prepare(p.runtime)
    count = parallel.evaluators(p.evaluation.devices, device, p.runtime.threads)

    def work(world: World) -> None:
        attack(p, method, seed, world)

    parallel.run(work, count, "stages.attack", f"attack {method} seed {seed}", device)


def attack(p: "Params", method: str, seed: int, world: World = ALONE) -> None:
    """Attack one checkpoint; columns finished earlier with the same ingredients are read back.

    The processes of `world` share out every attack's batches; rank 0 writes.
    """
    device = machine.prepare(p.runtime)
    checkpoint = run_folder(method, seed) / "model.safetensors"
    data = Path("data") / p.data.name
    model = models.classifier(p.model, load_meta(data))
    load_weights(checkpoint, model, models.architecture(p.model))
    test = load_split(data, "test", device)
    target = verdict_file(method, seed)
    if p.left_out and world.leads:
        print(f"attack: not defined in {p.threat.set}, left out: {', '.join(p.left_out)}", file=sys.stderr)

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
    columns, seconds = {}, {}
    with Progress(f"attack {method} seed {seed}", len(attacks)) if world.leads else contextlib.nullcontext() as bar:
        for name, settings in attacks.items():
            key = digest([identity, name, settings and settings.model_dump(), own_attacks.get(name), *common])[:32]
            file, natural = cache / f"{key}.npz", columns.get(NATURAL)
            columns[name] = _column(file, p, name, model.to(device), test, natural, world)
            seconds[name] = live.recorded(key).get("seconds")
            if bar:
                bar.step(f"{name} {1 - columns[name].broken.mean():.3f}")

    if not world.leads:
        return
    said = {name: suite.said(p, name) for name in attacks}
    verdicts = Verdicts.join(columns, test.y.cpu().numpy(), test.index.cpu().numpy(), identity, said)
    verdicts.save(target)
    write_json(target.with_suffix(".json"), verdicts.accuracies())
    live.record(digest_file(target), {"attack_seconds": seconds})


def _column(
    cached: Path, p: "Params", name: str, model: torch.nn.Module, test: Split, natural: Column | None, world: World
) -> Column:
    """One attack's column, from the work folder if it is there, else computed and kept."""
    kept = world.leading(Column.load(cached) if world.leads and cached.exists() else None)
    if kept is not None:
        return kept
    perturbations, started = perturbation.build(p.threat.set, p.threat.eps), time.monotonic()
    column = suite.column(name, p.evaluation, model, test, perturbations, natural, world)
    seconds = time.monotonic() - started
    if not world.leads:
        return column
    column.save(cached)
    live.record(cached.stem, live.circumstances(seconds, machine.fingerprint(p.runtime)))
    return column


if __name__ == "__main__":
    run_stage(main, shared=True)
