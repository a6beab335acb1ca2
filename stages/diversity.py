"""diversity: samples of every distribution beside PGD with restarts and noise, to results/diversity/."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import machine, params, perturbation, samplers
from pipeline.adversaries.profiles import resolve
from pipeline.ascent import frozen
from pipeline.cell import Cell
from pipeline.data.store import load_meta, load_split
from pipeline.errors import UserError
from pipeline.files import digest, digest_code, digest_file, read_json, write_csv, write_json, write_npz, write_text
from pipeline.models import architecture
from pipeline.models.weights import load_weights
from pipeline.params import Params
from pipeline.plots import diversity as figure
from pipeline.progress import Progress
from pipeline.samplers import Sampler
from pipeline.seeding import Stream
from pipeline.studies.diversity import Judged, describe, drawn, seen
from pipeline.studies.exploration import COLUMNS, PGD, UNIFORM, markdown
from pipeline.studies.projection import Plane, surface, window
from pipeline.studies.sample_budget import COLUMNS as BUDGET_COLUMNS
from pipeline.studies.sample_budget import Price, curve
from stages.common import WORK, run_folder, run_stage

FOLDER = Path("results/diversity")
LEARNED = "adt_exp"  # whose distribution needs no training: it is searched for on the model at hand
GENERATORS = ("adt_exp_am", "adt_imp_am")  # the methods that train one
# The code these numbers depend on; part of the key under which finished ones are kept.
DIVERSITY_CODE = (
    "pipeline/adversaries",
    "pipeline/ascent.py",
    "pipeline/cell.py",
    "pipeline/distribution.py",
    "pipeline/studies/diversity.py",
    "pipeline/losses.py",
    "pipeline/models",
    "pipeline/perturbation.py",
    "pipeline/studies/sample_budget.py",
    "pipeline/samplers.py",
    "pipeline/seeding.py",
)
Job = tuple[str, str, int]  # the method of the model, the source, the seed of both


def main() -> None:
    """Measure every source on its models, follow what samples cost, and draw some images; finished parts are kept."""
    p = params.load()
    study = Study(p, machine.prepare(p.runtime))
    measures, curves = [], []
    with Progress("diversity", len(study.jobs) + len(study.priced)) as bar:
        for job in study.jobs:
            measures.append(study.row(job) | study.finished("measures", job, study.measured))
            bar.step("measures: {1} on {0}, seed {2}".format(*job))
        for job in study.priced:
            curves += [study.row(job) | point for point in study.finished("budget", job, study.followed)]
            bar.step("budget: {1} on {0}, seed {2}".format(*job))
    d, shown = p.diversity, study.shown()
    write_csv(FOLDER / "diversity.csv", measures, COLUMNS)
    write_csv(FOLDER / "budget.csv", curves, BUDGET_COLUMNS)
    write_text(
        FOLDER / "diversity.md",
        markdown(p.data.called, measures, d.samples, len(study.test.x), d.confidence, study.absent),
    )
    write_npz(FOLDER / "samples.npz", **shown)
    figure.measures(p.data.called, measures, d.models, FOLDER / "measures.png")
    figure.budget(p.data.called, curves, FOLDER / "budget.png")
    figure.projection(p.data.called, shown, FOLDER / "projection.png")
    figure.images(p.data.called, shown, FOLDER / "images.png")


@dataclass
class Study:
    """The test images, and the models and samplers of every job."""

    p: Params
    device: torch.device

    def __post_init__(self) -> None:
        p, d, data = self.p, self.p.diversity, Path("data") / self.p.data.name
        self.test = load_split(data, "test", self.device).head(d.images)
        if max(d.shown) >= len(self.test.x):
            raise UserError(
                f"params.yaml: diversity.shown: should be below the number of test images"
                f" ({len(self.test.x)}; got {max(d.shown)})"
            )
        self.perturbations = perturbation.build(p.threat.set, p.threat.eps)
        generators = [method for method in GENERATORS if method in p.matrix.methods]
        self.absent = [method for method in GENERATORS if method not in p.matrix.methods]
        self.sources = [PGD, LEARNED, *generators, UNIFORM]
        own = [method for method in (LEARNED, *generators) if method in p.matrix.methods and method not in d.models]
        pairs = [*itertools.product(d.models, self.sources), *((m, s) for m in own for s in (PGD, m, UNIFORM))]
        self.jobs: list[Job] = [(model, source, seed) for model, source in pairs for seed in p.matrix.seeds]
        self.priced: list[Job] = [
            (model, source, seed) for model in d.models for source in (PGD, LEARNED, UNIFORM) for seed in p.matrix.seeds
        ]
        self.budget = Price.of(self._sampler(PGD, p.matrix.seeds[0])).total(d.restarts)

    def row(self, job: Job) -> dict[str, Any]:
        """How the CSV files name a job."""
        return dict(zip(("model", "source", "seed"), job, strict=True))

    def finished(self, kind: str, job: Job, make: Callable[[Job], Any]) -> Any:
        """What `make` gives for a job: read back if it was made before, else made and kept."""
        kept = WORK / "diversity" / kind / f"{self._key(kind, job)[:32]}.json"
        if not kept.exists():
            write_json(kept, make(job))
        return read_json(kept)

    def measured(self, job: Job) -> dict[str, float]:
        """The means over images of what a source's samples are like."""
        x, labels = self.test.x, self.test.y
        sampler, model, stream = self._job(job)
        d, batch = self.p.diversity, self.p.evaluation.batch_size
        return describe(sampler, model, x, labels, self.perturbations, stream, d.samples, batch).means()

    def followed(self, job: Job) -> list[dict[str, Any]]:
        """What the best of ever more samples reaches, within the budget."""
        x, labels = self.test.x, self.test.y
        sampler, model, stream = self._job(job)
        price, batch = Price.of(sampler), self.p.evaluation.batch_size
        batches = drawn(sampler, model, x, labels, self.perturbations, stream, price.affordable(self.budget), batch)
        return curve(Judged.join([judged for _, _, judged in batches]), price)

    def shown(self) -> dict[str, np.ndarray]:
        """All that is drawn of some images: every source's samples on the first model with the first seed.

        They are the samples that were measured: an image's do not depend on which others there are.
        """
        d, seed = self.p.diversity, self.p.matrix.seeds[0]
        model = self._model(d.models[0], seed)
        chosen = torch.tensor(d.shown, device=self.device)
        x, labels = self.test.x[chosen], self.test.y[chosen]
        parts = []
        with frozen(model) as fast, torch.no_grad():
            for source in self.sources:
                sampler, noise = self._sampler(source, seed), self._stream(source).at(chosen)
                draws = sampler(fast, x, labels, self.perturbations, noise, d.samples)
                parts.append((draws.deltas, Judged.of(model, x, labels, draws.deltas)))
            predicted = model(x).argmax(1)
            deltas = torch.stack([deltas for deltas, _ in parts], 1)
            planes = [self._plane(model, *example) for example in zip(x, labels, deltas, strict=True)]
        arrays = {
            "images": x,
            "labels": labels,
            "index": self.test.index[chosen],
            "clean_predicted": predicted,
            "deltas": deltas,
            "predicted": torch.stack([judged.predicted for _, judged in parts], 1),
            "loss": torch.stack([judged.loss for _, judged in parts], 1),
            "fooled": torch.stack([judged.fooled for _, judged in parts], 1),
        }
        names = {"model": np.array(d.models[0]), "seed": np.array(seed), "sources": np.array(self.sources)}
        joined = {name: np.stack([plane[name] for plane in planes]) for name in planes[0]}
        plain = {name: values.cpu().numpy() for name, values in arrays.items()}
        return names | {"eps": np.array(self.perturbations.eps)} | plain | joined

    def _plane(self, model: nn.Module, x: torch.Tensor, label: torch.Tensor, deltas: torch.Tensor) -> dict[str, Any]:
        """The plane of one image's samples (sources, S, C, H, W), where they are in it, and the loss there."""
        clipped = seen(x[None], deltas.flatten(0, 1)[None])[0]
        plane = Plane.of(clipped)
        places = plane.coordinates(clipped)
        axes = window(places, self.perturbations.eps, self.p.diversity.points)
        field = surface(model, x, label, self.perturbations, plane, axes)
        values = {
            "basis": plane.basis,
            "places": places.view(*deltas.shape[:2], 2),
            "axes": axes,
            "surface": field.loss,
            "surface_margin": field.margin,
            "surface_norm": field.norm,
        }
        return {name: value.numpy() for name, value in values.items()} | {"share": np.array(plane.share)}

    def _job(self, job: Job) -> tuple[Sampler, nn.Module, Stream]:
        method, source, seed = job
        return self._sampler(source, seed), self._model(method, seed), self._stream(source)

    def _stream(self, source: str) -> Stream:
        return Stream.of(self.p.evaluation.seed, "diversity", source)

    def _model(self, method: str, seed: int) -> nn.Module:
        """A trained classifier."""
        model, _, _ = Cell(self.p, method, seed).build(self.device)
        load_weights(_file(method, seed, "model"), model, architecture(self.p.model))
        return model

    def _sampler(self, source: str, seed: int) -> Sampler:
        """A source; the generators are those of the seed."""
        p = self.p
        if source == UNIFORM:
            return samplers.Uniform()
        if source == PGD:
            return samplers.Restarts(p.methods.at_pgd.steps, p.methods.at_pgd.step_size)
        if source == LEARNED:
            return samplers.Learned.with_settings(resolve(LEARNED, p.methods.adt_exp))
        _, adversary, _ = Cell(p, source, seed).build(self.device)
        load_weights(_file(source, seed, "adversary"), adversary)
        return samplers.of_adversary(adversary, p.train.batch_size)

    def _key(self, kind: str, job: Job) -> str:
        """The content key of a result: all that it depends on."""
        method, source, seed = job
        d = self.p.diversity
        made_by = [source, self._made_by(source, seed)]
        amount = d.samples if kind == "measures" else self.budget
        return digest([kind, digest_file(_file(method, seed, "model")), made_by, d.images, amount, self.common])

    def _made_by(self, source: str, seed: int) -> Sequence[Any]:
        """What decides a source's samples beside the model, the images and the code."""
        p = self.p
        if source == UNIFORM:
            return []
        method = "at_pgd" if source == PGD else source
        settings = resolve(method, p.method(method)).model_dump(by_alias=True)
        if source not in GENERATORS:
            return [settings]
        return [settings, digest_file(_file(source, seed, "adversary")), p.train.batch_size, p.train.precision]

    @cached_property
    def common(self) -> list[Any]:
        """What all results depend on: the threat, the test images, the random numbers, the code and the machine."""
        p, own_set = self.p, perturbation.source(self.p.threat.set)
        return [
            p.model.model_dump(),
            p.threat.model_dump(),
            own_set and digest_file(own_set),
            load_meta(Path("data") / p.data.name)["sha256"],
            [p.evaluation.seed, p.evaluation.batch_size],
            digest_code(Path(), *DIVERSITY_CODE),
            machine.fingerprint(p.runtime),
        ]


def _file(method: str, seed: int, kind: str) -> Path:
    return run_folder(method, seed) / f"{kind}.safetensors"


if __name__ == "__main__":
    run_stage(main)
