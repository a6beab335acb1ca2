"""The registry: the best run by validation alone, registered once, and back as a module that computes the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from small_workspace import description, finished, make
from torch import nn

from pipeline import models, params, tracking
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.models.weights import load_weights, save_weights

IMAGES = torch.linspace(0, 1, 3 * 2 * 8 * 8).view(3, 2, 8, 8)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with one method and three seeds in its matrix, and a database of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make()
    return tmp_path


def trained(seed: int, robust: float, natural: float = 0.9, meta: bool = True, **model: object) -> nn.Module:
    """The files of a finished training of a real network on images of 2x8x8 in 5 classes; returns that network."""
    settings = params.Model(**({"name": "small_cnn", "widths": [4, 6], "unshuffle": 2} | model))
    network = models.classifier(settings, {"shape": [2, 8, 8], "classes": range(5)}, seed).eval()
    folder = finished(seed)
    content = json.loads((folder / "run.json").read_text()) | {"model": settings.model_dump()}
    write_json(folder / "run.json", content)
    write_json(folder / "metrics.json", {"selected_epoch": 2, "val_natural": natural, "val_robust": robust})
    save_weights(folder / "model.safetensors", network.state_dict(), models.architecture(settings))
    if meta:
        sha256 = description(seed)["data"]["sha256"]
        write_json(Path("data/digits/meta.json"), {"shape": [2, 8, 8], "sha256": sha256})
    return network


def versions() -> list[str]:
    client = MlflowClient(tracking.tracking_uri())
    return [version.tags["seed"] for version in client.search_model_versions("name = 'smoke-at_pgd'")]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0: (0.5, 0.9), 1: (0.7, 0.8), 2: (0.6, 0.99)}, "1"),
        ({0: (0.5, 0.9), 1: (0.5, 0.95), 2: (0.4, 0.99)}, "1"),
        ({0: (0.5, 0.9), 1: (0.5, 0.9), 2: (0.5, 0.9)}, "0"),
    ],
    ids=["robust validation accuracy decides", "then the natural one", "then the lowest seed"],
)
def test_the_best_run_by_validation_is_champion(scores: dict[int, tuple[float, float]], best: str) -> None:
    for seed, (robust, natural) in scores.items():
        trained(seed, robust, natural)
    said = tracking.register("at_pgd")
    assert said.startswith("models:/smoke-at_pgd@champion: version 1 (at_pgd seed " + best)
    champion = MlflowClient(tracking.tracking_uri()).get_model_version_by_alias("smoke-at_pgd", "champion")
    assert champion.tags["seed"] == best


def test_a_model_is_registered_once_and_the_alias_follows_the_best() -> None:
    trained(0, robust=0.5)
    assert tracking.register("at_pgd").endswith(" registered")
    assert tracking.register("at_pgd").endswith("registered already")
    trained(1, robust=0.6)
    assert "version 2 (at_pgd seed 1" in tracking.register("at_pgd")
    shutil.rmtree("runs/at_pgd/seed-1")
    assert "version 1 (at_pgd seed 0" in tracking.register("at_pgd")
    assert sorted(versions()) == ["0", "1"]


NETWORKS = {
    "three stages": {"widths": [4, 4, 4], "unshuffle": 1},
    "folded pixels": {},
    "standardised": {
        "name": "preact_resnet18",
        "widths": None,
        "unshuffle": None,
        "mean": [0.4, 0.6],
        "std": [0.2, 0.3],
    },
}


@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS.keys())
def test_what_comes_back_computes_the_same(model: dict[str, object]) -> None:
    network = trained(0, 0.5, **model)
    tracking.register("at_pgd", name="mine")
    loaded = tracking.load_model("models:/mine@champion")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))


@pytest.mark.parametrize("address", ["models:/smoke-at_pgd/1", "models:/{id}"])
def test_a_version_and_a_logged_model_have_addresses_too(address: str) -> None:
    network = trained(0, robust=0.5)
    tracking.register("at_pgd")
    client = MlflowClient(tracking.tracking_uri())
    model_id = client.get_model_version("smoke-at_pgd", "1").source.removeprefix("models:/")
    loaded = tracking.load_model(address.format(id=model_id))
    assert torch.equal(loaded.head.weight, network.head.weight)


def test_the_command_says_what_it_is_and_keeps_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(0, robust=0.5, natural=0.75)
    run_cli("register", "at_pgd")
    run_cli("load", "models:/smoke-at_pgd@champion", "--output", "kept.safetensors")
    told = capsys.readouterr().out
    for fact in ("small_cnn 4-6 unshuffle 2", "at_pgd, seed 0", "ab" * 32, "2x8x8", "5 classes", "x - 0.5", "0.75"):
        assert fact in told
    copy = models.classifier(
        params.Model(name="small_cnn", widths=[4, 6], unshuffle=2), {"shape": [2, 8, 8], "classes": range(5)}, 1
    )
    load_weights(Path("kept.safetensors"), copy)
    assert torch.equal(copy.head.weight, network.head.weight)


def run_cli(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0


def test_without_the_data_the_size_of_images_is_not_claimed() -> None:
    trained(0, robust=0.5, meta=False)
    tracking.register("at_pgd")
    _, told = tracking.load("models:/smoke-at_pgd@champion")
    assert told["images"] is None and (told["channels"], told["classes"]) == (2, 5)
    assert "2 channel(s), size not recorded" in "\n".join(tracking.describe(told))


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "method": (lambda: tracking.register("at_pdg"), "at_pdg: not in matrix.methods of params.yaml; there are: at_pgd"),
    "untrained": (lambda: tracking.register("at_pgd"), "at_pgd: no seed of it is trained"),
    "model": (lambda: tracking.load("models:/nobody@champion"), "models:/nobody@champion: no such model"),
    "version": (lambda: tracking.load("models:/nobody/7"), "models:/nobody/7: no such model"),
    "address": (lambda: tracking.load("digits"), "digits: models:/NAME@ALIAS, "),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_name_that_mlflow_refuses_is_refused_before_anything_is_written() -> None:
    trained(0, robust=0.5)
    with pytest.raises(UserError, match="--name a/b"):
        tracking.register("at_pgd", name="a/b")


@pytest.mark.parametrize("call", [lambda: tracking.register("at_pgd"), lambda: tracking.load_model("models:/a@b")])
def test_a_server_that_is_away_is_one_line(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    trained(0, robust=0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9: no answer"):
        call()
