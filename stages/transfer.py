"""transfer: every trained model attacks every other, and so do the trained generators, to results/transfer/."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import machine, models, params, perturbation
from pipeline.attacks import loop, suite
from pipeline.attacks.catalogue import Perturb
from pipeline.cell import Cell
from pipeline.data.store import load_meta, load_split
from pipeline.errors import UserError
from pipeline.files import digest, digest_code, digest_file, write_csv, write_npz
from pipeline.models.weights import load_weights
from pipeline.params import Params
from pipeline.plots import transfer as figure
from pipeline.progress import Progress
from pipeline.seeding import Stream
from pipeline.transfer import COLUMNS, GENERATOR, Transfer, cell_name
from pipeline.transfer_attacks import Generated, Shown
from pipeline.verdicts import NATURAL, Column
from stages.common import WORK, run_folder, run_stage

FOLDER = Path("results/transfer")
GENERATORS = ("adt_exp_am", "adt_imp_am")  # the methods that train one
# The code these verdicts depend on; part of the key under which finished ones are kept.
TRANSFER_CODE = (
    "pipeline/adversaries",
    "pipeline/ascent.py",
    "pipeline/attacks",
    "pipeline/cell.py",
    "pipeline/distribution.py",
    "pipeline/losses.py",
    "pipeline/models",
    "pipeline/perturbation.py",
    "pipeline/samplers.py",
    "pipeline/seeding.py",
    "pipeline/transfer_attacks.py",
)


def main() -> None:
    """Verdicts of every target on everything that every source makes; what was finished earlier is read back."""
    p = params.load()
    if GENERATOR in p.transfer.attacks:
        raise UserError(
            f"params.yaml: transfer.attacks: {GENERATOR!r} is what the table calls the trained generators;"
            " give the attack of evaluation.attacks another name"
        )
    crossing = Crossing(p, machine.prepare(p.runtime))
    jobs = [(attack, source) for source, cell in crossing.cells.items() for attack in attacks(p, cell.method)]
    found = {}
    with Progress("transfer", len(jobs)) as bar:
        for attack, source in jobs:
            found[attack, source] = crossing.finished(attack, source)
            bar.step(f"{attack} of {source}")
    test = crossing.test
    table = Transfer.join(found, list(crossing.cells), test.y.cpu().numpy(), test.index.cpu().numpy())
    table.save(FOLDER / "verdicts.npz")
    write_csv(FOLDER / "transfer.csv", table.rows(), COLUMNS)
    figure.draw(p.data.called, table.accuracies(), table.attacks, table.sources, table.targets, FOLDER / "transfer.png")


def attacks(p: Params, method: str) -> list[str]:
    """What a model of `method` attacks the others with."""
    return [*dict.fromkeys(p.transfer.attacks), *([GENERATOR] if method in GENERATORS else [])]


@dataclass
class Crossing:
    """The test images, the cells of the matrix, and one network that takes the weights of any of them in turn."""

    p: Params
    device: torch.device

    def __post_init__(self) -> None:
        p, data = self.p, Path("data") / self.p.data.name
        self.cells = {cell_name(m, s): Cell(p, m, s) for m in p.matrix.methods for s in p.matrix.seeds}
        self.test = load_split(data, "test", self.device)
        self.perturbations = perturbation.build(p.threat.set, p.threat.eps)
        self.network = models.classifier(p.model, load_meta(data)).to(self.device)
        self.files = {name: _file(cell, "model") for name, cell in self.cells.items()}
        self.naturals: dict[str, Column] = {}
        self.hashes = {name: digest_file(file) for name, file in self.files.items()}

    def finished(self, attack: str, source: str) -> np.ndarray:
        """All targets' verdicts on one attack of one source, bool (targets, N); those found earlier are read back.

        They are kept by the hash of the target, so that a new model in the matrix is all that is attacked.
        """
        cached, known = WORK / "transfer" / f"{self.key(attack, source)[:32]}.npz", {}
        if cached.exists():
            with np.load(cached) as arrays:
                known = dict(arrays)
        missing = [target for target in self.cells if self.hashes[target] not in known]
        if missing:
            known |= self.broken(attack, source, missing)
            write_npz(cached, **known)
        return np.stack([known[self.hashes[target]] for target in self.cells])

    def broken(self, attack: str, source: str, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """By the target's hash, its verdicts, judged as every attack's are; images are made once and shown to all."""
        p, test = self.p, self.test
        made, stream = self._made(attack, source), Stream.of(p.evaluation.seed, "attack", attack)

        def verdicts(target: str) -> np.ndarray:
            natural, model = self.natural(target), self._model(target)
            batch = p.evaluation.batch_size
            return loop.run(made, model, test, self.perturbations, stream, batch, natural=natural).broken

        return {self.hashes[target]: verdicts(target) for target in targets}

    def natural(self, target: str) -> Column:
        """The verdicts of a target on the images themselves, taken once."""
        if target not in self.naturals:
            taken = suite.column(NATURAL, self.p.evaluation, self._model(target), self.test, self.perturbations)
            self.naturals[target] = taken
        return self.naturals[target]

    def _made(self, attack: str, source: str) -> Perturb:
        """What the source has for the targets: attacked images, or its generator."""
        p, test, cell = self.p, self.test, self.cells[source]
        if attack != GENERATOR:
            images = suite.images(attack, p.evaluation, self._model(source), test, self.perturbations)
            return Shown(images, test.index)
        _, adversary, _ = cell.build(self.device)
        load_weights(_file(cell, "adversary"), adversary)
        return Generated(adversary, p.transfer.draws, p.train.batch_size)

    def _model(self, cell: str) -> nn.Module:
        """The network with the weights of a cell, until the next call."""
        load_weights(self.files[cell], self.network, models.architecture(self.p.model))
        return self.network

    def key(self, attack: str, source: str) -> str:
        """The content key of one attack of one source: all that its verdicts depend on but the target."""
        return digest([self._maker(attack, source), self.common])

    def _maker(self, attack: str, source: str) -> list[Any]:
        p, cell = self.p, self.cells[source]
        if attack != GENERATOR:
            return [self.hashes[source], suite.description(p.evaluation, [attack])]
        settings = [p.transfer.draws, p.train.batch_size, p.train.precision, p.evaluation.seed, p.evaluation.batch_size]
        return [digest_file(_file(cell, "adversary")), cell.method, cell.settings.model_dump(by_alias=True), *settings]

    @cached_property
    def common(self) -> list[Any]:
        """What all verdicts depend on: architecture, threat, test images, code and machine."""
        p, own_set = self.p, perturbation.source(self.p.threat.set)
        return [
            p.model.model_dump(),
            p.threat.model_dump(),
            own_set and digest_file(own_set),
            load_meta(Path("data") / p.data.name)["sha256"],
            digest_code(Path(), *TRANSFER_CODE),
            machine.fingerprint(p.runtime),
        ]


def _file(cell: Cell, kind: str) -> Path:
    return run_folder(cell.method, cell.seed) / f"{kind}.safetensors"


if __name__ == "__main__":
    run_stage(main)
