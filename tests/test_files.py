"""Files are atomic and deterministic."""

import csv
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files import (
    digest,
    digest_code,
    digest_file,
    read_csv,
    read_json,
    write_bytes,
    write_csv,
    write_json,
    write_npz,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_midway_leaves_the_old_content_and_no_debris(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="file: cannot be written: disk full; the file that was there is untouched"),
    ):
        patch.setattr(os, failing, fail)
        write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_content_is_complete_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace, seen = tmp_path / "file", os.replace, []

    def watch(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), Path(source).parent == path.parent, path.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_bytes(path, b"content")
    assert seen == [(b"content", True, False)]
    assert path.read_bytes() == b"content"


def test_folders_are_made_and_files_have_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_text(path, "grüße\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.read_bytes() == "grüße\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_survives_a_round_trip_in_its_order(tmp_path: Path) -> None:
    value = {"b": [1, None, "é"], "a": {"x": 0.1}}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == value
    assert list(read_json(tmp_path / "file")) == ["b", "a"]
    assert (tmp_path / "file").read_text().endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_json_is_refused_and_nothing_is_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"a": value})
    assert not (tmp_path / "file").exists()


def test_csv_has_the_columns_asked_for_empty_cells_for_none_and_six_digits(tmp_path: Path) -> None:
    rows = [{"b": None, "a": 1 / 3, "ignored": 1}, {"a": 12, "b": 'with "quotes", and comma'}]
    write_csv(tmp_path / "file", rows, ["a", "b", "c"])
    assert (tmp_path / "file").read_bytes() == b'a,b,c\n0.333333,,\n12,"with ""quotes"", and comma",\n'
    assert read_csv(tmp_path / "file") == [
        {"a": "0.333333", "b": "", "c": ""},
        {"a": "12", "b": 'with "quotes", and comma', "c": ""},
    ]


def test_csv_is_what_pythons_reader_reads(tmp_path: Path) -> None:
    write_csv(tmp_path / "file", [{"a": "x,\ny", "b": np.float64(2.5)}], ["a", "b"])
    with open(tmp_path / "file", newline="") as handle:
        assert list(csv.reader(handle)) == [["a", "b"], ["x,\ny", "2.5"]]


def test_equal_arrays_give_equal_bytes_without_a_clock(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3), "names": np.array(["x", "yy"])}
    for name in ("one.npz", "two.npz"):
        write_npz(tmp_path / name, **arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        # Whatever Python writes it: 3.11.7 would otherwise ask readers for version 4.5, 3.11.2 for 2.0.
        headers = {(e.date_time, e.create_system, e.extract_version, e.external_attr) for e in archive.infolist()}
        assert headers == {((1980, 1, 1, 0, 0, 0), 3, 20, 0o600 << 16)}
    with np.load(tmp_path / "one.npz") as loaded:
        assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())


@given(JSON)
def test_a_digest_does_not_depend_on_the_order_of_keys(value: object) -> None:
    def turned(v: object) -> object:
        if isinstance(v, dict):
            return {key: turned(v[key]) for key in reversed(v)}
        return [turned(item) for item in v] if isinstance(v, list) else v

    assert digest(turned(value)) == digest(value)


@given(JSON, JSON)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    # repr tells 1 from True and from 1.0, which Python calls equal and JSON does not.
    assert (digest(one) == digest(other)) == (repr(canonical(one)) == repr(canonical(other)))


def canonical(value: object) -> object:
    if isinstance(value, dict):
        return sorted((key, canonical(item)) for key, item in value.items())
    return [canonical(item) for item in value] if isinstance(value, list) else value


def test_a_digest_is_the_sha256_of_canonical_json() -> None:
    # printf '{"a":[1,2.5],"b":null}' | sha256sum
    known = "f66b2c50ccae61e3f2445d2439f42efc245581b18ed184ce5d3c22fb58eed9c4"
    assert digest({"b": None, "a": [1, 2.5]}) == digest({"a": (1, 2.5), "b": None}) == known


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"")
    assert digest_file(tmp_path / "file") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    for name in ("a.py", "package/b.py", "package/inner/c.py", "package/notes.txt", "other.py"):
        write_text(tmp_path / name, name)
    return tmp_path


@pytest.mark.parametrize(
    "file, counts",
    [
        ("a.py", True),
        ("package/inner/c.py", True),
        ("package/new.py", True),
        ("package/notes.txt", False),
        ("other.py", False),
    ],
)
def test_the_digest_of_code_covers_the_python_files_of_its_parts(file: str, counts: bool, code: Path) -> None:
    before = digest_code(code, "a.py", "package")
    write_text(code / file, "changed")
    assert (digest_code(code, "a.py", "package") != before) == counts


def test_the_digest_of_code_does_not_depend_on_where_it_lies_or_how_parts_are_listed(code: Path) -> None:
    moved = code / "moved"
    moved.mkdir()
    for name in ("a.py", "package"):
        (code / name).rename(moved / name)
    digests = {digest_code(moved, *parts) for parts in (["a.py", "package"], ["package", "a.py", "package/b.py"])}
    for name in ("a.py", "package"):
        (moved / name).rename(code / name)
    assert digests == {digest_code(code, "a.py", "package")}


def test_renaming_a_module_changes_the_digest_of_code(code: Path) -> None:
    before = digest_code(code, "package")
    (code / "package" / "b.py").rename(code / "package" / "d.py")
    assert digest_code(code, "package") != before
