"""Model files are tensors only and byte-identical; resumable state belongs to one fingerprint."""

import contextlib
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A state file of the run "mine", which tests may overwrite, and what is in it."""
    path = tmp_path_factory.mktemp("state") / "state.pt"
    save_state(path, "mine", {"epoch": 3, "weights": torch.ones(2)})
    return path, path.read_bytes()


def refusal(path: Path, content: bytes) -> str:
    """What is said on stderr of a state file with this content, which must not be loaded."""
    path.write_bytes(content)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert load_state(path, "mine") is None
    before, after = f"warning: {path} ", "; training starts from the beginning\n"
    said = errors.getvalue()
    assert said.startswith(before) and said.endswith(after) and said.count("\n") == 1
    return said.removeprefix(before).removesuffix(after)


REASONS = {
    "is not a training state of this version",
    "belongs to a run with other parameters, data, code or machine",
    "is damaged (truncated or changed)",
}


@settings(max_examples=200)
@given(data=st.data())
def test_a_state_cut_short_anywhere_is_refused(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = whole
    cut = data.draw(st.integers(0, len(content) - 1))
    assert refusal(path, content[:cut]) in REASONS


@settings(max_examples=400)
@given(data=st.data())
def test_a_state_with_any_byte_changed_is_refused(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = whole
    # Every second change falls into the first line, which is a small part of the file.
    place = data.draw(st.integers(0, content.index(b"\n")) | st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    assert refusal(path, bytes(changed)) in REASONS


@given(data=st.data())
def test_a_state_with_something_behind_it_is_damaged(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = whole
    assert refusal(path, content + data.draw(st.binary(min_size=1))) == "is damaged (truncated or changed)"


@given(content=st.binary() | st.text().map(str.encode))
def test_what_is_no_state_is_refused(whole: tuple[Path, bytes], content: bytes) -> None:
    assert refusal(whole[0], content) == "is not a training state of this version"


def test_the_whole_state_is_read_in_silence(whole: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    path, content = whole
    path.write_bytes(content)
    assert load_state(path, "mine")["epoch"] == 3
    assert capsys.readouterr().err == ""
