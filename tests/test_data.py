"""Prepared data sets: the digits against scikit-learn, splits, and the common form on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from pipeline import params
from pipeline.cell import Cell
from pipeline.data import partition, store
from pipeline.data.sources import SOURCES
from pipeline.data.store import Arrays
from pipeline.errors import UserError
from pipeline.params import Data, Split
from pipeline.yaml_files import read_yaml

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


def test_the_digits_are_those_that_the_recorded_results_were_made_on(folder: Path) -> None:
    recorded = "f2e82b88cda4743789fcc946fd1caa2437350fdb4b8489480989e172a3fadfc4"
    assert store.load_meta(folder)["sha256"] == recorded


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


def test_the_title_is_written_where_it_says_more_than_the_name(folder: Path, tmp_path: Path) -> None:
    assert "title" not in store.load_meta(folder)
    assert "title" not in store.save(DIGITS, tmp_path / "digits", "digits", "digits")
    assert store.save(DIGITS, tmp_path / "digits", "digits", "Digits (UCI)")["title"] == "Digits (UCI)"


def test_another_content_than_the_expected_replaces_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    store.save(DIGITS, folder, "digits", expected=store.load_meta(folder)["sha256"])
    with pytest.raises(UserError, match=r"params.yaml: data.sha256: digits has the content hash [0-9a-f]{64}, not 00"):
        store.save(digits(seed=1), folder, "digits", expected="0" * 64)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    (folder.parent / ".digits.1.tmp").mkdir()
    (folder.parent / ".digits.1.tmp/train.npz").write_bytes(b"half")
    (folder / "of another split").touch()
    store.save(DIGITS, folder, "digits")
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    assert not (folder / "of another split").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="data/digits: cannot be written"):
        store.save(DIGITS, tmp_path / "data/digits", "digits")


def test_a_folder_that_was_never_prepared_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro prepare"):
        store.load_meta(tmp_path)


# Splits


@settings(deadline=None, max_examples=40)
@given(data=st.data(), own_test=st.booleans())
def test_a_split_is_disjoint_stratified_and_keeps_the_sources_own_test_set(data: st.DataObject, own_test: bool) -> None:
    classes = data.draw(st.integers(2, 5))
    each = data.draw(st.lists(st.integers(20, 60), min_size=classes, max_size=classes))
    sizes = {part: data.draw(st.integers(classes, 20)) for part in ("validation", "test", "train")}
    asked = {
        part: data.draw(st.sampled_from([size, None])) if part == "train" else size for part, size in sizes.items()
    }
    split = Split(**asked, seed=data.draw(st.integers(0, 99)))
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))
    assume(len(labels) - sum(sizes.values()) >= classes)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    names = [str(number) for number in range(classes)]
    if own_test:
        arrays = partition.keep_test((images, labels), (images, labels), names, split)
        assert arrays.parts["test"].min() >= len(labels)
        assert max(*arrays.parts["train"], *arrays.parts["validation"]) < len(labels)
    else:
        arrays = partition.split_test((images, labels), names, split)
    rest = len(labels) - sizes["validation"] - (0 if own_test else sizes["test"])
    counts = {part: len(index) for part, index in arrays.parts.items()}
    assert counts == {"train": split.train or rest, "validation": split.validation, "test": split.test}
    together = np.concatenate(list(arrays.parts.values()))
    assert len(set(together)) == len(together)
    for index in arrays.parts.values():
        assert np.array_equal(index, np.sort(index))
        shares = np.bincount(arrays.labels[index], minlength=classes) - len(index) * np.array(each) / len(labels)
        assert np.abs(shares).max() <= 2


def test_a_test_set_of_its_own_stays_whole_unless_a_number_is_asked_for() -> None:
    images, labels = DIGITS.images, DIGITS.labels
    for asked, count in ((None, 1797), (1797, 1797), (300, 300)):
        split = Split(validation=100, test=asked, seed=0)
        parts = partition.keep_test((images, labels), (images, labels), DIGITS.classes, split).parts
        assert len(parts["test"]) == count and len(parts["train"]) == 1697
    with pytest.raises(UserError, match="params.yaml: data.split.test: 1798 of 1797 images cannot be chosen"):
        partition.keep_test((images, labels), (images, labels), DIGITS.classes, Split(validation=10, test=1798, seed=0))


@pytest.mark.parametrize("part", ["validation", "test", "train"])
def test_a_part_too_small_for_its_classes_is_named(part: str) -> None:
    sizes = {"validation": 200, "test": 500, "train": 100} | {part: 9}
    with pytest.raises(UserError, match=rf"data.split.{part}: 9 of \d+ images cannot be chosen with every class"):
        SOURCES["digits"](Data(name="digits", split=Split(**sizes, seed=0)))


# What params.yaml may say


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "mnist"}, "data.name: input should be 'digits', 'fashion-mnist', 'cifar10'"),
        ({"folder": "x"}, "data: digits are embedded and take no folder"),
        ({"split": {"validation": 1, "seed": 0}}, "data: digits have no test set of their own and need split.test"),
        ({"name": "svhn", "folder": "x", "archive": "y"}, "data: folder and archive exclude each other"),
        ({"name": "svhn", "resize": 8}, "data: svhn takes no resize"),
        ({"name": "image_folder", "title": "x"}, "data: image_folder needs folder or archive"),
        ({"name": "image_folder", "folder": "x"}, "data: image_folder needs title"),
        ({"name": "image_folder", "folder": "x", "title": " "}, "data.title: string should match"),
        ({"sha256": "abc"}, "data.sha256: string should match"),
        ({"colour": True}, "data.colour: unknown key; allowed here: name, title, folder, archive, resize, channels"),
    ],
)
def test_what_does_not_fit_the_source_is_named(changes: dict[str, Any], said: str) -> None:
    values = read_yaml(Path(__file__).parents[1] / "presets/smoke.yaml")
    with pytest.raises(UserError) as caught:
        params.parse(values | {"data": values["data"] | changes}, "params.yaml")
    assert str(caught.value).startswith(f"params.yaml: {said}")


@pytest.mark.parametrize(
    ("name", "title", "called"),
    [("digits", None, "digits"), ("cifar10", None, "CIFAR-10"), ("cifar10", "CIFAR-10 (mine)", "CIFAR-10 (mine)")],
)
def test_data_are_called_by_their_title_or_usual_name(name: str, title: str | None, called: str) -> None:
    assert Data(name=name, title=title, split=Split(validation=1, test=1, seed=0)).called == called


# On the device


def test_stored_pixels_become_the_same_numbers_batch_by_batch(folder: Path) -> None:
    stored, unit = store.load_pixels(folder, "train"), store.load_split(folder, "train")
    assert stored.x.dtype == torch.uint8 and unit.x.dtype == torch.float32
    rows = torch.tensor([700, 3, 3, 41])
    assert torch.equal(stored.images(rows), unit.x[rows]) and torch.equal(unit.images(rows), unit.x[rows])
    assert torch.equal(stored.y, unit.y) and torch.equal(stored.index, unit.index)
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    exact = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(store.Split(levels, levels, levels).images(torch.arange(256)).numpy().ravel(), exact)


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Cell]:
    """A cell of the smoke preset, in a folder of its own with the data prepared."""
    p = params.parse(read_yaml(Path(__file__).parents[1] / "presets/smoke.yaml"), "smoke")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.cell.digest_code", lambda *_: "code")
    store.save(SOURCES["digits"](p.data), Path("data/digits"), "digits")
    short = p.model_copy(update={"train": p.train.model_copy(update={"epochs": 1})})
    return lambda: Cell(short, "at_pgd", 0)


def test_training_never_opens_the_test_set(cell: Callable[[], Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, *rest: opened.append(Path(path).name) or load(path, *rest))
    Path("data/digits/test.npz").unlink()
    cell().train(torch.device("cpu"), Path("state.pt"))
    assert opened == ["train.npz", "validation.npz"]


def test_training_from_stored_pixels_gives_the_bits_of_training_from_floats(
    cell: Callable[[], Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cell().train(torch.device("cpu"), Path("one.pt"))[1].state_dict()
    monkeypatch.setattr("pipeline.cell.load_pixels", store.load_split)
    other = cell().train(torch.device("cpu"), Path("other.pt"))[1].state_dict()
    assert all(torch.equal(values, other[name]) for name, values in first.items())
