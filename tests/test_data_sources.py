"""Every source becomes the same arrays, from folders and archives; what is wrong with a file is one line naming it."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline import params
from pipeline.data import cifar, download, idx
from pipeline.data.download import Remote
from pipeline.data.sources import SOURCES
from pipeline.data.store import Arrays
from pipeline.errors import UserError
from pipeline.yaml_files import dump, read_yaml
from stages import prepare

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"class_{number}" for number in range(100)]
Files = dict[str, bytes]


@dataclass(frozen=True)
class Source:
    """A tiny data set: the files of one published form, and the images and labels that they hold."""

    name: str
    files: Files
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: list[str]


def labelled(count: int, classes: int, shape: tuple[int, ...] = (3, 32, 32)) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8), RANDOM.permutation(np.arange(count) % classes)


def python2_pickle(images: np.ndarray, labels: np.ndarray, key: str) -> bytes:
    """The opcodes of the published Python batches, which Python 2 wrote in protocol 2."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    rows = images.reshape(len(images), -1)
    kind = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR(K\x01("
    array += struct.pack("<cHcH", b"M", rows.shape[0], b"M", rows.shape[1]) + b"t" + kind + b"K\x00tb\x89"
    array += struct.pack("<cI", b"T", rows.size) + rows.tobytes() + b"tb"
    whole = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(" + text(key.encode()) + b"](" + whole + b"e" + text(b"data") + array + b"u."


def python3_pickle(images: np.ndarray, labels: np.ndarray, key: str) -> bytes:
    return pickle.dumps({key: labels.tolist(), "data": images.reshape(len(images), -1)}, protocol=2)


def records(images: np.ndarray, labels: np.ndarray, coarse: bool) -> bytes:
    columns = [RANDOM.integers(0, 20, len(labels)), labels] if coarse else [labels]
    return np.column_stack([*columns, images.reshape(len(images), -1)]).astype(np.uint8).tobytes()


def cifar10(write: Callable[..., bytes] | None = None) -> Source:
    train, test = labelled(100, 10), labelled(20, 10)
    end = "" if write else ".bin"
    make = write and (lambda *pair: write(*pair, "labels")) or (lambda *pair: records(*pair, coarse=False))
    files = {f"data_batch_{n + 1}{end}": make(*(array[20 * n : 20 * n + 20] for array in train)) for n in range(5)} | {
        f"test_batch{end}": make(*test)
    }
    names = pickle.dumps({"label_names": CIFAR10}, protocol=2) if write else ("\n".join(CIFAR10) + "\n\n").encode()
    return Source("cifar10", files | {"batches.meta" if write else "batches.meta.txt": names}, train, test, CIFAR10)


def cifar100(write: Callable[..., bytes] | None = None) -> Source:
    train, test = labelled(500, 100), labelled(100, 100)
    if write:
        files = {"train": write(*train, "fine_labels"), "test": write(*test, "fine_labels")}
        files["meta"] = pickle.dumps({b"fine_label_names": [name.encode() for name in FINE]}, protocol=2)
    else:
        files = {"train.bin": records(*train, coarse=True), "test.bin": records(*test, coarse=True)}
        files["fine_label_names.txt"] = "\n".join(FINE).encode()
    return Source("cifar100", files, train, test, FINE)


def idx_file(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def fashion(packed: bool) -> Source:
    train, test = labelled(60, 10, (1, 28, 28)), labelled(20, 10, (1, 28, 28))
    files = {}
    for part, (images, labels) in (("train", train), ("t10k", test)):
        files |= {f"{part}-images-idx3-ubyte": idx_file(images[:, 0]), f"{part}-labels-idx1-ubyte": idx_file(labels)}
    files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()} if packed else files
    return Source("fashion-mnist", files, train, test, idx._CLASSES)


def mat_file(images: np.ndarray, labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    ten = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(buffer, {"X": images.transpose(2, 3, 1, 0), "y": ten}, do_compression=True)
    return buffer.getvalue()


def house_numbers() -> Source:
    train, test = labelled(60, 10), labelled(20, 10)
    files = {"train_32x32.mat": mat_file(*train), "test_32x32.mat": mat_file(*test)}
    return Source("svhn", files, train, test, list("0123456789"))


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An image file of (C, H, W) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def black(channels: int, height: int, width: int, kind: str = "PNG") -> bytes:
    return picture(np.zeros((channels, height, width), np.uint8), kind)


def pictures(channels: int = 3, parts: tuple[str, ...] = ("train/", "test/"), side: int = 9) -> Source:
    """PNG images; in the order of their names, as they are read."""
    sets, files = [], {}
    for part in parts:
        images, _ = labelled(24, 1, (channels, side, side))
        labels = np.repeat([0, 1, 2], 8)
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            files[f"{part}{'abc'[label]}/{number:02}.png"] = picture(pixels)
        sets.append((images, labels))
    return Source("image_folder", files, sets[0], sets[-1], list("abc"))


PUBLISHED = {
    "CIFAR-10": cifar10(),
    "CIFAR-10, Python 2": cifar10(python2_pickle),
    "CIFAR-10, Python 3": cifar10(python3_pickle),
    "CIFAR-100": cifar100(),
    "CIFAR-100, Python 2": cifar100(python2_pickle),
    "Fashion-MNIST": fashion(packed=False),
    "Fashion-MNIST, packed": fashion(packed=True),
    "SVHN": house_numbers(),
    "colour images": pictures(),
    "grey images": pictures(channels=1),
}


def write_folder(files: Files, place: Path) -> dict[str, str]:
    for name, content in files.items():
        (place / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "in" / name).write_bytes(content)
    return {"folder": str(place / "in")}


def write_tar(files: Files, place: Path, kind: str) -> dict[str, str]:
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place / f"source.tar.{kind}", f"w:{kind}") as archive:
        for name, content in reversed(files.items()):
            info = tarfile.TarInfo(f"./around/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {"archive": str(place / f"source.tar.{kind}")}


def write_zip(files: Files, place: Path) -> dict[str, str]:
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / "source.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"around/it/{name}", content)
    return {"archive": str(place / "source.zip")}


WRITERS: dict[str, Callable[[Files, Path], dict[str, str]]] = {
    "folder": write_folder,
    "tar.gz": lambda files, place: write_tar(files, place, "gz"),
    "tar.xz": lambda files, place: write_tar(files, place, "xz"),
    "zip": write_zip,
}


def settings(name: str, **changes: Any) -> params.Data:
    split = {"seed": 0} | {key: changes.pop(key) for key in ("validation", "test", "train") if key in changes}
    title = {"title": "Images"} if name == "image_folder" else {}
    return params.Data.model_validate({"name": name, "split": {"validation": 10} | split} | title | changes)


def load(source: Source, place: Path, **changes: Any) -> Arrays:
    many = {"validation": 100} if source.name == "cifar100" else {}
    return SOURCES[source.name](settings(source.name, **many | write_folder(source.files, place) | changes))


@pytest.mark.parametrize("source", PUBLISHED.values(), ids=PUBLISHED.keys())
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_images_labels_and_classes_are_those_of_the_files(
    source: Source, writer: Callable[[Files, Path], dict[str, str]], tmp_path: Path
) -> None:
    many = 100 if source.name == "cifar100" else 10
    arrays = SOURCES[source.name](settings(source.name, validation=many, **writer(source.files, tmp_path)))
    assert arrays.images.dtype == np.uint8 and arrays.labels.dtype == np.int64 and arrays.classes == source.classes
    assert np.array_equal(arrays.images, np.concatenate([source.train[0], source.test[0]]))
    assert np.array_equal(arrays.labels, np.concatenate([source.train[1], source.test[1]]))
    first = len(source.train[1])
    assert np.array_equal(arrays.parts["test"], np.arange(first, len(arrays.labels)))
    assert sorted([*arrays.parts["train"], *arrays.parts["validation"]]) == list(range(first))


# Images in folders


def test_images_of_one_level_are_split_by_the_seed(tmp_path: Path) -> None:
    source = pictures(parts=("",))
    arrays = load(source, tmp_path, test=6, validation=3)
    assert {part: len(index) for part, index in arrays.parts.items()} == {"train": 15, "validation": 3, "test": 6}
    assert np.array_equal(arrays.images, source.train[0]) and np.array_equal(arrays.labels, source.train[1])
    with pytest.raises(UserError, match=r"params.yaml: data.split.test: the source has no test set of its own"):
        load(source, tmp_path)


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    source = pictures()
    write_folder(source.files, tmp_path)
    (tmp_path / "in/train/b").rename(tmp_path / "elsewhere")
    (tmp_path / "in/train/b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    arrays = SOURCES["image_folder"](settings("image_folder", folder=str(tmp_path / "in")))
    assert np.array_equal(arrays.images[:24], source.train[0])


def test_hidden_files_and_files_of_other_kinds_do_not_matter(tmp_path: Path) -> None:
    source = pictures()
    more = {"README.md": b"", "train/a/.hidden.png": b"", "__MACOSX/train/a/x.png": b"", "train/a/Thumbs.db": b""}
    write_folder(more, tmp_path)
    assert np.array_equal(load(source, tmp_path).images[:24], source.train[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_becomes_what_pillow_decodes(tmp_path: Path, channels: int) -> None:
    source = pictures(channels)
    images = np.concatenate([source.train[0], source.test[0]])
    names = [name.replace("png", "JPG") for name in source.files]
    files = {name: picture(pixels, "JPEG") for name, pixels in zip(names, images, strict=True)}
    arrays = load(Source("image_folder", files, source.train, source.test, source.classes), tmp_path)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in files.values()])
    assert np.array_equal(arrays.images, decoded[:, None] if channels == 1 else decoded.transpose(0, 3, 1, 2))


def test_images_of_any_size_are_scaled_from_their_central_square(tmp_path: Path) -> None:
    source = pictures(side=4)
    border, inside = np.full((3, 12, 20), 200, np.uint8), slice(4, 16)
    border[:, :, inside] = 40
    source.files["test/a/wide.png"] = picture(border)
    source.files["test/a/tall.png"] = picture(border.transpose(0, 2, 1))
    arrays = load(source, tmp_path, resize=4)
    assert arrays.images.shape == (50, 3, 4, 4)
    assert np.array_equal(arrays.images[:24], source.train[0]), "what has the size already stays as it is"
    assert (arrays.images == 40).all((1, 2, 3)).sum() == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test/b/30.png": black(1, 9, 9)}, r"test/b/30.png: is grey where colour is expected"),
        ({"test/b/30.png": black(3, 8, 9)}, r"test/b/30.png: is 9x8; images must be all 9x9"),
        ({"test/a/!.png": black(3, 8, 9)}, r"test/a/!.png: is 9x8; images must be square"),
        ({"test/b/30.png": b"\x89PNG\r\n\x1a\n and no more"}, r"test/b/30.png: cannot be read as an image"),
        (
            {"test/b/30.jpg": black(3, 9, 9, "JPEG")[:300]},
            r"30.jpg: cannot be read as an image",
        ),
        (
            {"test/b/30.png": black(3, 9, 9, "GIF")},
            r"test/b/30.png: cannot be read as an image",
        ),
        ({"test/b/30.png": black(4, 9, 9)}, r"30.png: has pixels of kind RGBA; allowed: 8-bit"),
        ({"test/d/30.png": black(3, 9, 9)}, r"train/ has no images of the class 'd'"),
        (
            {"30.png": black(3, 9, 9)},
            r"in: 30.png: wrong place for an image; expected CLASS/IM",
        ),
        ({"val/a/0.png": black(3, 9, 9)}, r"in: val/a/0.png: wrong place for an image"),
        ({"test/a/x/0.png": black(3, 9, 9)}, r"in: test/a/x/0.png: wrong place for an image"),
    ],
)
def test_an_image_that_does_not_fit_is_named(tmp_path: Path, change: Files, said: str) -> None:
    source = pictures()
    source.files.update(change)
    with pytest.raises(UserError, match=said):
        load(source, tmp_path)


@pytest.mark.parametrize(("found", "wanted"), [(1, 3), (3, 1)])
def test_grey_images_where_colour_is_expected_and_the_other_way_round(tmp_path: Path, found: int, wanted: int) -> None:
    with pytest.raises(UserError, match=r"00.png: is \w+ where \w+ is expected \(data.channels\)"):
        load(pictures(found), tmp_path, channels=wanted)


@pytest.mark.parametrize(
    ("files", "said"),
    [({"a.txt": b""}, "in: no PNG or JPEG images found"), ({"x.png": b""}, "cannot be read"), ({}, "no such file")],
)
def test_a_folder_without_images(tmp_path: Path, files: Files, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(Source("image_folder", files, *pictures().train, []), tmp_path)  # type: ignore[arg-type]


# Damaged files and archives

ZEROS = np.zeros((2, 3, 32, 32), np.uint8)
DAMAGE = [
    (
        "CIFAR-10",
        "data_batch_3.bin",
        lambda b: b[:-1],
        r"data_batch_3.bin: truncated: 61459 bytes are no whole rec",
    ),
    ("CIFAR-10", "data_batch_3.bin", lambda b: b[:-3073], r"test_batch.bin: truncated, or a file beside it: 20 test"),
    (
        "CIFAR-10",
        "test_batch.bin",
        lambda b: b"\x0a" + b[1:],
        r"test_batch.bin: holds the label 10; classes are 0 to",
    ),
    ("CIFAR-10", "batches.meta.txt", lambda b: b[:9], r"batches.meta.txt: names 1 classes, not 10"),
    ("CIFAR-100", "train.bin", None, r"in: train.bin is missing; expected are train.bin, test.bin, fine_label"),
    ("CIFAR-100, Python 2", "train", lambda b: b[:-9], r"train: cannot be read as pickled arrays"),
    ("CIFAR-10, Python 3", "test_batch", lambda b: pickle.dumps({"data": 1}), r"test_batch: holds no array `data`"),
    ("CIFAR-10, Python 3", "test_batch", lambda b: pickle.dumps([1]), r"test_batch: cannot be read as pickled"),
    ("Fashion-MNIST", "train-images-idx3-ubyte", lambda b: b[:-5], r"images-idx3-ubyte: holds 47035 values where its"),
    ("Fashion-MNIST", "train-images-idx3-ubyte", lambda b: b[:3], r"train-images-idx3-ubyte: is no idx file"),
    ("Fashion-MNIST", "t10k-labels-idx1-ubyte", lambda b: idx_file(np.arange(19)), r"labels.*: holds 19 labels"),
    ("Fashion-MNIST", "t10k-labels-idx1-ubyte", lambda b: idx_file(np.arange(20)), r"labels.*: holds the label 19"),
    ("Fashion-MNIST, packed", "train-labels-idx1-ubyte.gz", lambda b: b[:-9], r"idx1-ubyte.gz: damaged or truncated"),
    ("SVHN", "test_32x32.mat", lambda b: b[:-99], r"test_32x32.mat: cannot be read as a MATLAB file with X and y"),
    (
        "SVHN",
        "test_32x32.mat",
        lambda b: mat_file(ZEROS[:, :, 1:], np.arange(2)),
        r"X is uint8 \(31",
    ),
    (
        "SVHN",
        "test_32x32.mat",
        lambda b: mat_file(ZEROS, np.array([1, 11])),
        r"outside of",
    ),
]


@pytest.mark.parametrize(("name", "file", "damage", "said"), DAMAGE, ids=[f"{d[0]}: {d[3][:40]}" for d in DAMAGE])
def test_a_damaged_file_is_named(name: str, file: str, damage: Any, said: str, tmp_path: Path) -> None:
    source = PUBLISHED[name]
    files = dict(source.files)
    content = files.pop(file)
    if damage:
        files[file] = damage(content)
    with pytest.raises(UserError, match=said) as caught:
        load(Source(source.name, files, source.train, source.test, source.classes), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive_is_named(kind: str, share: float, tmp_path: Path) -> None:
    source = PUBLISHED["colour images"]
    archive = Path(WRITERS[kind](source.files, tmp_path)["archive"])
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(UserError, match=rf"source.{kind}: damaged or truncated archive \("):
        SOURCES["image_folder"](settings("image_folder", archive=str(archive)))


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_a_changed_byte_in_an_archive_is_found(kind: str, tmp_path: Path) -> None:
    archive = Path(WRITERS[kind](PUBLISHED["Fashion-MNIST"].files, tmp_path)["archive"])
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="damaged or truncated archive"):
        SOURCES["fashion-mnist"](settings("fashion-mnist", archive=str(archive)))


def test_a_file_that_is_there_twice_is_not_chosen_from(tmp_path: Path) -> None:
    source = PUBLISHED["SVHN"]
    write_folder({"old/test_32x32.mat": source.files["test_32x32.mat"]}, tmp_path)
    with pytest.raises(UserError, match=r"test_32x32.mat is there twice: old/test_32x32.mat and test_32x32.mat"):
        load(source, tmp_path)


def test_an_archive_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "source.rar").write_bytes(b"")
    with pytest.raises(UserError, match=r"source.rar: unknown kind of archive; allowed: a folder, .zip, .tar.xz"):
        SOURCES["svhn"](settings("svhn", archive=str(tmp_path / "source.rar")))


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(black(3, 9, 9))
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("train/a/0.png")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(info)
    with pytest.raises(UserError, match=r"source.tar.gz: train/a/0.png is a link or a device; only plain files"):
        SOURCES["image_folder"](settings("image_folder", archive=str(tmp_path / "source.tar.gz")))


def test_names_that_lead_out_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    source = PUBLISHED["CIFAR-10"]
    place = tmp_path / "deep/down"
    archive = write_tar({f"../../../{name}": content for name, content in source.files.items()}, place, "gz")
    assert np.array_equal(SOURCES["cifar10"](settings("cifar10", **archive)).images[:100], source.train[0])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["source.tar.gz"]


class Evil:
    """Unpickled as usual, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path) -> None:
    source = cifar10(python3_pickle)
    source.files["data_batch_2"] = pickle.dumps({"data": Evil(tmp_path / "evil")}, protocol=2)
    with pytest.raises(UserError, match=r"data_batch_2: cannot be read as pickled arrays \(it names (posix|nt).mkdir"):
        load(source, tmp_path)
    assert not (tmp_path / "evil").exists()


# Where a source without folder and archive comes from


def test_fashion_mnist_comes_from_debians_package_where_it_is_installed(tmp_path: Path, monkeypatch) -> None:
    source = PUBLISHED["Fashion-MNIST, packed"]
    monkeypatch.setattr(idx, "DEBIAN", Path(write_folder(source.files, tmp_path)["folder"]))
    monkeypatch.setattr(download, "fetch", lambda *_: pytest.fail("downloaded"))
    assert np.array_equal(SOURCES["fashion-mnist"](settings("fashion-mnist")).images[:60], source.train[0])


@pytest.mark.parametrize("name", ["Fashion-MNIST, packed", "CIFAR-10", "CIFAR-100", "SVHN"])
def test_else_the_official_files_are_downloaded(name: str, tmp_path: Path, monkeypatch) -> None:
    source, asked = PUBLISHED[name], []
    files = source.files
    if name.startswith("CIFAR"):
        write_tar(source.files, tmp_path, "gz")
        files = {cifar.LAYOUTS[source.name].remote.name: (tmp_path / "source.tar.gz").read_bytes()}

    def fetch(remote: Remote, folder: str) -> Path:
        asked.append(remote)
        write_folder({f"{folder}/{remote.name}": files[remote.name]}, tmp_path)
        return tmp_path / "in" / folder / remote.name

    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(cifar, "fetch", fetch)
    monkeypatch.setattr(download, "fetch", fetch)
    many = 100 if source.name == "cifar100" else 10
    arrays = SOURCES[source.name](settings(source.name, validation=many))
    assert np.array_equal(arrays.images[: len(source.train[0])], source.train[0])
    assert {remote.name for remote in asked} == set(files) and all(len(remote.sha256) == 64 for remote in asked)


# The stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `prepare` on colour images, with changed parameters."""
    folder = write_folder(pictures().files, tmp_path)["folder"]
    monkeypatch.chdir(tmp_path)

    def run(**changes: Any) -> None:
        data = {"name": "image_folder", "title": "CIFAR-10 (JPEG)", "folder": folder}
        data |= {"split": {"validation": 6, "seed": 0}} | changes
        Path("params.yaml").write_text(dump(read_yaml(ROOT / "presets/smoke.yaml") | {"data": data}))
        prepare.main()

    return run


def test_prepare_writes_the_data_and_what_they_are_called(stage: Callable[..., None], capsys) -> None:
    stage()
    meta = read_yaml(Path("data/image_folder/meta.json"))
    assert meta["title"] == "CIFAR-10 (JPEG)" and meta["counts"] == {"train": 18, "validation": 6, "test": 24}
    assert f"CIFAR-10 (JPEG), 18 train, 6 validation, 24 test images of 3x9x9, content {meta['sha256']}" in (
        capsys.readouterr().out
    )
    stage(sha256=meta["sha256"])


@pytest.mark.parametrize("wrong", ["image", "hash"])
def test_what_cannot_be_prepared_leaves_what_was_there(stage: Callable[..., None], wrong: str, tmp_path: Path) -> None:
    changes = {"sha256": "0" * 64} if wrong == "hash" else {}
    said = "params.yaml: data.sha256: image_folder has the content hash" if changes else "zz.png: cannot be read"
    if wrong == "image":
        (tmp_path / "in/test/c/zz.png").write_bytes(b"")
    with pytest.raises(UserError, match=said):
        stage(**changes)
    assert not Path("data").exists() or not list(Path("data").iterdir())
    (tmp_path / "in/test/c/zz.png").unlink(missing_ok=True)
    stage()
    before = Path("data/image_folder/train.npz").read_bytes()
    with pytest.raises(UserError, match="data.split.validation: 600 of 24 images cannot be chosen"):
        stage(split={"validation": 600, "seed": 0})
    assert Path("data/image_folder/train.npz").read_bytes() == before and Path("data/image_folder/meta.json").exists()
    assert [path.name for path in Path("data").iterdir()] == ["image_folder"]
