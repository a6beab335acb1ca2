"""landscape: loss surfaces of every method's first seed, to results/landscape/."""

from pathlib import Path

import numpy as np

from pipeline import landscape, machine, models, params
from pipeline.data.store import load_meta, load_split
from pipeline.files import write_npz
from pipeline.models.weights import load_weights
from pipeline.plots import landscape as figure
from pipeline.progress import Progress
from pipeline.seeding import Stream
from stages.common import run_folder, run_stage

FOLDER = Path("results/landscape")


def main() -> None:
    """The same images and random streams for every method; one panel a method."""
    p = params.load()
    device = machine.prepare(p.runtime)
    seed = p.matrix.seeds[0]
    data = Path("data") / p.data.name
    examples = load_split(data, "test", device).head(p.landscape.images)
    surfaces = {}
    with Progress("landscape", len(p.matrix.methods)) as bar:
        for method in p.matrix.methods:
            model = models.classifier(p.model, load_meta(data)).to(device)
            load_weights(run_folder(method, seed) / "model.safetensors", model, models.architecture(p.model))
            coordinates, losses = landscape.surface(
                model,
                examples.x,
                examples.y,
                Stream.of(p.evaluation.seed, "landscape").at(examples.index),
                eps=p.threat.eps,
                points=p.landscape.points,
                radius=p.landscape.radius,
            )
            surfaces[method] = losses.numpy()
            bar.step(method)
    axis = coordinates.cpu().numpy()
    write_npz(
        FOLDER / "landscape.npz",
        methods=np.array(list(surfaces)),
        coordinates=axis,
        losses=np.stack(list(surfaces.values())),
        index=examples.index.cpu().numpy(),
    )
    means = {method: losses.mean(0) for method, losses in surfaces.items()}
    figure.draw(axis, means, len(examples.x), seed, FOLDER / "landscape.png")


if __name__ == "__main__":
    run_stage(main)
