"""A model of MLflow as a ready torch module, built from the files that were logged with it."""

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
from mlflow.exceptions import MlflowException

from pipeline import params
from pipeline.errors import UserError
from pipeline.files import read_json, write_bytes
from pipeline.tracking.server import answering, connect, tracking_uri

if TYPE_CHECKING:
    from torch import nn


def load_model(uri: str) -> "nn.Module":
    """The classifier at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/ID`, on the CPU, in evaluation mode.

    It takes images in [0, 1], (N, channels, height, width), and gives logits: the normalisation
    it was trained with is inside. `UserError` where there is no such model or MLflow does not answer.
    """
    return load(uri)[0]


def load(uri: str, output: Path | None = None) -> tuple["nn.Module", dict[str, Any]]:
    """The classifier and what it is: run.json with `images` ([C, H, W], or None), `classes`, `architecture`.

    `output`: where to keep the weights as safetensors, which `python -m pipeline attack
    --checkpoint` reads. Nothing is written unless the model loads.
    """
    if not uri.startswith("models:/"):
        raise UserError(f"{uri}: models:/NAME@ALIAS, models:/NAME/VERSION or models:/ID is allowed")
    with tempfile.TemporaryDirectory() as folder:
        files = _download(uri, folder)
        told = {**read_json(files / "run.json"), **_stored(files)}
        model = _build(told, files / "model.safetensors")
        if output:
            write_bytes(output, (files / "model.safetensors").read_bytes())
    return model.eval(), told


def describe(told: dict[str, Any]) -> list[str]:
    """Lines for a terminal on what `load` returned."""
    settings, images = told["model"], told["images"]
    if settings["name"] == "small_cnn":
        normalisation = "pixels are centred (x - 0.5), inside the model"
    elif settings.get("mean") is None:
        normalisation = "none: the network sees pixels as they are"
    else:
        normalisation = f"(x - {settings['mean']}) / {settings['std']} a channel, inside the model"
    shape = "x".join(map(str, images)) if images else f"{told['channels']} channel(s), size not recorded"
    facts = {
        "architecture": told["architecture"],
        "trained by": f"{told['method']}, seed {told['seed']}",
        "data": f"{told['data']['name']}, sha256 {told['data']['sha256']}",
        "images": f"{shape}, in [0, 1]; {told['classes']} classes",
        "normalisation": normalisation,
        "threat": f"{told['threat']['set']}, eps {told['threat']['eps']:g}",
        "validation": ", ".join(f"{name} {value}" for name, value in told["scores"].items()) or "not recorded",
        "content key": told["key"],
    }
    return [f"{name:14} {value}" for name, value in facts.items()]


def _download(uri: str, folder: str) -> Path:
    with answering():
        connect()  # an empty database gets its tables
        try:
            found = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=tracking_uri())
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"{uri}: no such model; `python -m pipeline register METHOD` registers one") from None
    files = Path(found)
    if not all((files / name).is_file() for name in ("model.safetensors", "run.json")):
        raise UserError(f"{uri}: not a model of this pipeline (model.safetensors and run.json are wanted)")
    return files


def _stored(files: Path) -> dict[str, Any]:
    """What the weights tell: architecture, channels, classes, side of the last features; and the images and scores."""
    import safetensors

    settings = read_json(files / "run.json")["model"]
    with safetensors.safe_open(files / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        architecture = (file.metadata() or {}).get("architecture", "unknown")
    first = next(shapes[name] for name in ("stem.0.weight", "stem.weight", *shapes) if len(shapes.get(name, ())) == 4)
    classes, features = shapes["head.weight"]
    meta, metrics = files / "meta.json", files / "metrics.json"
    return {
        "architecture": architecture,
        "channels": first[1] // (settings.get("unshuffle") or 1) ** 2,
        "classes": classes,
        "features": features,
        "images": read_json(meta)["shape"] if meta.exists() else None,
        "scores": read_json(metrics) if metrics.exists() else {},
    }


def _build(told: dict[str, Any], weights: Path) -> "nn.Module":
    """The network of run.json, of the size that the weights have, filled with them."""
    # Here, so that whoever only mirrors does not wait a second for torch.
    from pipeline import models
    from pipeline.models.weights import load_weights

    settings = params.Model.model_validate(told["model"])
    size = 1
    if settings.name == "small_cnn":  # its head sees side x side features; any image that leaves this side will do
        side = math.isqrt(told["features"] // settings.widths[-1])
        size = side * settings.unshuffle * 2 ** (len(settings.widths) - 1)
    meta = {"shape": [told["channels"], size, size], "classes": range(told["classes"])}
    model = models.classifier(settings, meta)
    load_weights(weights, model, models.architecture(settings))
    return model
