"""Model files are tensors only and byte-identical; resumable state belongs to one fingerprint."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.errors import UserError
from pipeline.models.weights import load_weights, save_weights
from pipeline.training.checkpoint import load_state, save_state


def test_weights_survive_a_round_trip(make_model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved, loaded = make_model(seed=0), make_model(seed=1)
    save_weights(path, saved.state_dict())
    load_weights(path, loaded)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(saved.state_dict()), rtol=0, atol=0)


def test_any_safetensors_reader_opens_the_file(make_model, tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", make_model()
    save_weights(path, model.state_dict())
    torch.testing.assert_close(safetensors.torch.load_file(path), dict(model.state_dict()), rtol=0, atol=0)


def test_equal_weights_give_equal_bytes_in_whatever_order_and_layout(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2)
    save_weights(tmp_path / "one", {"a": a, "b": b})
    save_weights(tmp_path / "two", {"b": b.clone().requires_grad_(), "a": a.t().contiguous().t()})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_weights_of_another_network_are_refused(make_model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = dict(make_model().state_dict())
    weights.pop("head.bias")
    save_weights(path, weights)
    with pytest.raises(UserError, match=r"model\.safetensors.*head\.bias"):
        load_weights(path, make_model())


def test_a_file_that_is_no_model_is_the_users_to_mend(make_model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="not weights of this model"):
        load_weights(path, make_model())


def test_state_comes_back_for_its_own_fingerprint_only(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, "mine", {"epoch": 3, "weights": torch.ones(2)})
    state = load_state(path, "mine")
    assert state["epoch"] == 3 and torch.equal(state["weights"], torch.ones(2))
    assert load_state(path, "another") is None


def test_there_is_no_state_before_the_first_save(tmp_path: Path) -> None:
    assert load_state(tmp_path / "state.pt", "mine") is None
