"""Prepared data sets: the digits against scikit-learn, and the common form on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.data.store import Arrays
from pipeline.errors import UserError
from pipeline.params import Data, Split

SOURCE = load_digits()


def digits(seed: int = 0) -> Arrays:
    return SOURCES["digits"](Data(name="digits", split=Split(validation=200, test=500, seed=seed)))


DIGITS = digits()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.save(DIGITS, tmp_path / "digits", "digits")
    return tmp_path / "digits"


def test_digits_are_scikit_learns_with_16_becoming_255() -> None:
    assert DIGITS.images.dtype == np.uint8 and DIGITS.images.shape == (1797, 1, 8, 8)
    assert np.abs(DIGITS.images[:, 0] / 255 - SOURCE.images / 16).max() <= 0.5 / 255
    assert np.array_equal(DIGITS.labels, SOURCE.target)
    assert DIGITS.classes == list("0123456789")


def test_every_digit_is_in_exactly_one_part_of_the_asked_size() -> None:
    assert {part: len(index) for part, index in DIGITS.parts.items()} == {"train": 1097, "validation": 200, "test": 500}
    assert sorted(np.concatenate(list(DIGITS.parts.values()))) == list(range(1797))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_part_has_its_share_of_every_class(part: str) -> None:
    counts = np.bincount(DIGITS.labels[DIGITS.parts[part]], minlength=10)
    expected = np.bincount(SOURCE.target) * len(DIGITS.parts[part]) / 1797
    assert np.abs(counts - expected).max() <= 2


def test_the_split_is_a_function_of_its_seed() -> None:
    again, other = digits(), digits(seed=1)
    for part, index in DIGITS.parts.items():
        assert np.array_equal(again.parts[part], index)
        assert not np.array_equal(other.parts[part], index)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_comes_back_as_the_pixels_at_its_index(folder: Path, part: str) -> None:
    split = store.load_split(folder, part)
    assert np.array_equal(split.index.numpy(), DIGITS.parts[part])
    assert (split.x.dtype, split.y.dtype, split.index.dtype) == (torch.float32, torch.int64, torch.int64)
    np.testing.assert_allclose(split.x[:, 0].numpy(), SOURCE.images[split.index] / 16, atol=0.5 / 255)
    assert split.x.min() == 0 and split.x.max() == 1
    assert np.array_equal(split.y.numpy(), SOURCE.target[split.index])


def test_the_description_tells_what_is_there(folder: Path) -> None:
    meta = store.load_meta(folder)
    assert (meta["name"], meta["shape"], meta["classes"]) == ("digits", [1, 8, 8], DIGITS.classes)
    assert meta["counts"] == {"train": 1097, "validation": 200, "test": 500}


def test_the_head_of_a_part_is_its_first_examples(folder: Path) -> None:
    test = store.load_split(folder, "test")
    head = test.head(3)
    assert torch.equal(head.x, test.x[:3]) and torch.equal(head.y, test.y[:3])
    assert torch.equal(head.index, test.index[:3])


def test_preparing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    store.save(digits(), tmp_path / "again", "digits")
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["meta.json", "test.npz", "train.npz", "validation.npz"]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)


@pytest.mark.parametrize("changed", ["images", "labels", "parts"])
def test_the_content_hash_changes_with_every_pixel_label_and_split(folder: Path, tmp_path: Path, changed: str) -> None:
    arrays = digits()
    if changed == "parts":
        arrays.parts["train"][[0, 1]] = arrays.parts["train"][[1, 0]]
    else:
        getattr(arrays, changed)[0] += 1
    meta = store.save(arrays, tmp_path / "changed", "digits")
    assert meta["sha256"] != store.load_meta(folder)["sha256"]


def test_the_description_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("write_npz", "write_json"):
        monkeypatch.setattr(store, name, lambda path, *_, **__: written.append(path.name))
    store.save(DIGITS, tmp_path, "digits")
    assert sorted(written[:-1]) == ["test.npz", "train.npz", "validation.npz"] and written[-1] == "meta.json"


def test_a_folder_that_was_never_prepared_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro prepare"):
        store.load_meta(tmp_path)
