"""Model files know their architecture; the authors' files are read without running them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.weights import load_released, load_weights, save_weights
from pipeline.models.wide_resnet import WideResNet
from pipeline.seeding import Stream, seeded_globals


def tiny(seed: int = 0, widen: int = 2, classes: int = 3) -> WideResNet:
    with seeded_globals(Stream.of(seed, "test model")):
        return WideResNet(10, widen, 1, classes)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def authors(module: WideResNet) -> dict[str, Tensor]:
    """The weights under the authors' names, in their order, with a block that is never used."""
    ours = module.state_dict()
    theirs = {"conv1.weight": ours["stem.weight"], "sub_block1.layer.0.conv1.weight": torch.ones(2, 2)}
    for stage in range(3):
        for old, new in (
            ("activate.0", "bn1"),
            ("body.0", "conv1"),
            ("body.1", "bn2"),
            ("body.3", "conv2"),
            ("shortcut", "convShortcut"),
        ):
            prefix = f"stages.{stage}.0.{old}."
            found = {name.removeprefix(prefix): ours[name] for name in ours if name.startswith(prefix)}
            theirs |= {f"block{stage + 1}.layer.0.{new}.{kind}": tensor for kind, tensor in found.items()}
    theirs |= {name.replace("neck.0", "bn1"): ours[name] for name in ours if name.startswith("neck.0.")}
    return theirs | {"fc.weight": ours["head.weight"], "fc.bias": ours["head.bias"]}


def refusal(load: Callable[..., None], *arguments: Any) -> str:
    """The message with which a file is refused: one line that begins with the file; the model stays as it was."""
    path, module = arguments[:2]
    before = state(module)
    with pytest.raises(UserError) as caught:
        load(*arguments)
    torch.testing.assert_close(state(module), before, rtol=0, atol=0)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 300
    return message.removeprefix(f"{path}: ")


# Our files


@pytest.mark.parametrize("stored, asked", [("WRN-10-2", "WRN-10-2"), ("WRN-10-2", ""), ("", "WRN-10-2"), ("", "")])
def test_weights_load_where_no_architecture_contradicts(tmp_path: Path, stored: str, asked: str) -> None:
    path, saved, loaded = tmp_path / "model.safetensors", tiny(0), tiny(1)
    save_weights(path, saved.state_dict(), stored)
    load_weights(path, loaded, asked)
    torch.testing.assert_close(state(loaded), state(saved), rtol=0, atol=0)


def test_a_file_of_another_architecture_names_both(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, tiny().state_dict(), "WideResNet-28-10")
    assert refusal(load_weights, path, tiny(1), "small_cnn") == "holds WideResNet-28-10, but the model is small_cnn"


def test_equal_weights_of_equal_architecture_give_equal_bytes(tmp_path: Path) -> None:
    for name, architecture in (("one", "a"), ("two", "a"), ("other", "b")):
        save_weights(tmp_path / name, tiny().state_dict(), architecture)
    one, two, other = ((tmp_path / name).read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda weights: weights.pop("head.bias"), "head.bias is missing"),
        (lambda weights: weights.update(more=torch.ones(1)), "more is unknown to the model"),
        (lambda weights: weights.update({"head.bias": torch.ones(7)}), "head.bias has shape [7], in the model [3]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_first_misfit(tmp_path: Path, change, complaint: str) -> None:
    path, weights = tmp_path / "model.safetensors", state(tiny())
    change(weights)
    save_weights(path, weights)
    assert refusal(load_weights, path, tiny(1)) == f"not weights of this model: {complaint}"


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "not weights of this model" in refusal(load_weights, path, tiny())


# The authors' files


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_published_file_gives_the_published_weights(tmp_path: Path, prefix: str, zipped: bool) -> None:
    path, published, model = tmp_path / "model.pt", tiny(0), tiny(1)
    content = {prefix + name: tensor for name, tensor in authors(published).items()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    load_released(path, model)
    torch.testing.assert_close(state(model), state(published), rtol=0, atol=0)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run(tmp_path: Path, save) -> None:
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    save(authors(tiny()) | {"conv1.bias": Trap(trap)}, path)
    assert "not a PyTorch file of plain tensors" in refusal(load_released, path, tiny(1))
    assert not trap.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.pt"
    torch.save(authors(tiny()), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "not a PyTorch file of plain tensors" in refusal(load_released, path, tiny(1))


@pytest.mark.parametrize("content", [b"hello", b"<html>not found</html>", bytes(range(256))])
def test_a_file_of_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert "not a PyTorch file of plain tensors" in refusal(load_released, path, tiny())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(load_released, tmp_path / "absent.pt", tiny())


@pytest.mark.parametrize(
    "content", [torch.ones(2), [torch.ones(2)], {"state": {}, "param_groups": []}, {1: torch.ones(2)}]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert "not a state dict" in refusal(load_released, path, tiny())


def test_published_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"layer1.weight": torch.ones(2)}, path)
    assert "unknown weights layer1.weight" in refusal(load_released, path, tiny())


@pytest.mark.parametrize(
    "published, misfit",
    [
        (tiny(classes=4), "head.weight has shape [4, 128], in the model [3, 128]"),
        (tiny(widen=1), "stages.0.0.shortcut.weight is missing"),
    ],
    ids=["classes", "width"],
)
def test_published_weights_of_another_size_are_refused(tmp_path: Path, published: WideResNet, misfit: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(authors(published), path)
    assert refusal(load_released, path, tiny()) == f"not weights of this model: {misfit}"
