"""probe: measure one cell's selected checkpoint, to probes/METHOD/seed-N.json."""

from pathlib import Path

from pipeline import machine, models, params
from pipeline.data.store import load_meta, load_split
from pipeline.files import digest_file, write_json
from pipeline.health.probes import Subject, probe
from pipeline.models.weights import load_weights
from stages.common import cell_of_command_line, probe_file, run_folder, run_stage


def main() -> None:
    """Probe one checkpoint on the first test images."""
    p = params.load()
    method, seed = cell_of_command_line(p, __doc__)
    device = machine.prepare(p.runtime)
    checkpoint, data = run_folder(method, seed) / "model.safetensors", Path("data") / p.data.name
    model = models.classifier(p.model, load_meta(data))
    load_weights(checkpoint, model, models.architecture(p.model))
    images = load_split(data, "test", device).head(p.health.images)
    measured = probe(Subject(model.to(device), images, p))
    write_json(probe_file(method, seed), {"checkpoint": digest_file(checkpoint), **measured})


if __name__ == "__main__":
    run_stage(main)
