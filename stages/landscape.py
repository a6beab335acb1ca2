"""landscape: loss surfaces and curvature around test images, of every model of the matrix, to results/landscape/."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import machine, models, params, perturbation
from pipeline.data.store import load_meta, load_split
from pipeline.files import digest, digest_code, digest_file, write_csv, write_npz, write_text
from pipeline.models.weights import load_weights
from pipeline.params import Params
from pipeline.plots import landscape as figure
from pipeline.progress import Progress
from pipeline.seeding import Noise, Stream
from pipeline.studies import curvature, curvature_table, landscape
from stages.common import WORK, run_folder, run_stage

FOLDER = Path("results/landscape")
# The code these numbers depend on; part of the key under which finished ones are kept.
MEASURING_CODE = (
    "pipeline/ascent.py",
    "pipeline/studies/curvature.py",
    "pipeline/studies/landscape.py",
    "pipeline/losses.py",
    "pipeline/models",
    "pipeline/perturbation.py",
    "pipeline/seeding.py",
    "stages/landscape.py",
)
Arrays = dict[str, np.ndarray]


def main() -> None:
    """The same images and random numbers for every model; models that were measured earlier are read back."""
    p = params.load()
    around = Surroundings(p, machine.prepare(p.runtime))
    seeds = p.matrix.seeds[: p.landscape.seeds]
    cells = list(itertools.product(p.matrix.methods, seeds))
    found: dict[tuple[str, int], Arrays] = {}
    with Progress("landscape", len(cells)) as bar:
        for method, seed in cells:
            found[method, seed] = around.finished(run_folder(method, seed) / "model.safetensors")
            bar.step(f"{method} seed {seed}")
    together = {
        name: np.stack([np.stack([found[method, seed][name] for seed in seeds]) for method in p.matrix.methods])
        for name in ("losses", *curvature.NUMBERS)
    }
    axis = next(iter(found.values()))["coordinates"]
    images, measured = (around.test.head(n) for n in (p.landscape.images, p.landscape.curvature.images))
    write_npz(
        FOLDER / "landscape.npz",
        methods=np.array(p.matrix.methods),
        seeds=np.array(seeds),
        coordinates=axis,
        index=images.index.cpu().numpy(),
        labels=images.y.cpu().numpy(),
        curvature_index=measured.index.cpu().numpy(),
        **together,
    )
    _tables(p, found)
    surfaces = dict(zip(p.matrix.methods, together["losses"], strict=True))
    figure.draw(p.data.called, axis, surfaces, seeds, p.landscape.clip, FOLDER / "landscape.png")
    figure.draw_in_space(p.data.called, axis, surfaces, seeds, p.landscape.clip, FOLDER / "surface.png")
    few = images.head(p.landscape.shown)
    shown = figure.Shown(few.x.cpu().numpy(), few.y.tolist(), few.index.tolist())
    single = {method: losses[0, : p.landscape.shown] for method, losses in surfaces.items()}
    figure.draw_images(p.data.called, axis, single, shown, seeds[0], p.landscape.clip, FOLDER / "images.png")


def _tables(p: Params, found: dict[tuple[str, int], Arrays]) -> None:
    """curvature.csv, curvature.md and the figure of the same numbers."""
    c = p.landscape.curvature
    table = curvature_table.rows(found, c.tolerance)
    write_csv(FOLDER / "curvature.csv", table, curvature_table.COLUMNS)
    where = f"{p.data.called}, {p.threat.set} eps {p.threat.eps:g}"
    text = curvature_table.markdown(
        table, where=where, clip=p.landscape.clip, tolerance=c.tolerance, iterations=c.iterations
    )
    write_text(FOLDER / "curvature.md", text)
    figure.draw_curvature(p.data.called, table, FOLDER / "curvature.png")


@dataclass
class Surroundings:
    """The test images, and one network that takes the weights of any model in turn."""

    p: Params
    device: torch.device

    def __post_init__(self) -> None:
        p, data = self.p, Path("data") / self.p.data.name
        self.test = load_split(data, "test", self.device)
        self.perturbations = perturbation.build(p.threat.set, p.threat.eps)
        self.network = models.classifier(p.model, load_meta(data)).to(self.device)

    def finished(self, checkpoint: Path) -> Arrays:
        """What `look` gives of a model file: read back, else computed and kept."""
        cached = WORK / "landscape" / f"{digest([digest_file(checkpoint), self.common])[:32]}.npz"
        if not cached.exists():
            write_npz(cached, **self.look(checkpoint))
        with np.load(cached) as arrays:
            return dict(arrays)

    def look(self, checkpoint: Path) -> Arrays:
        """Coordinates (points,), losses on the grids (images, points, points), numbers of curvature (images,)."""
        p, settings = self.p, self.p.landscape
        load_weights(checkpoint, self.network, models.architecture(p.model))
        images, measured = self.test.head(settings.images), self.test.head(settings.curvature.images)
        coordinates, losses = landscape.surface(
            self.network,
            images.x,
            images.y,
            self._noise("landscape", images.index),
            eps=p.threat.eps,
            points=settings.points,
            radius=settings.radius,
            batch_size=p.evaluation.batch_size,
            clip=settings.clip,
        )
        c = settings.curvature
        numbers = curvature.measure(
            self.network,
            measured.x,
            measured.y,
            self._noise("curvature", measured.index),
            curvature.Climb(self.perturbations, c.steps, c.step_size, c.restarts, settings.clip),
            tolerance=c.tolerance,
            iterations=c.iterations,
            batch_size=p.evaluation.batch_size,
        )
        found = {"coordinates": coordinates, "losses": losses, **numbers}
        return {name: values.cpu().numpy() for name, values in found.items()}

    def _noise(self, purpose: str, index: torch.Tensor) -> Noise:
        return Stream.of(self.p.evaluation.seed, purpose).at(index)

    @cached_property
    def common(self) -> list[Any]:
        """What every model's numbers depend on beside its weights: settings, test images, code and machine."""
        p, own_set = self.p, perturbation.source(self.p.threat.set)
        return [
            p.landscape.model_dump(exclude={"seeds", "shown"}),
            p.evaluation.seed,
            p.evaluation.batch_size,
            p.model.model_dump(),
            p.threat.model_dump(),
            own_set and digest_file(own_set),
            load_meta(Path("data") / p.data.name)["sha256"],
            digest_code(Path(), *MEASURING_CODE),
            machine.fingerprint(p.runtime),
        ]


if __name__ == "__main__":
    run_stage(main)
