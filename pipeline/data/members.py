"""The files of a source: in a folder, a compressed tar archive or a zip archive, read one after another.

Nothing is ever unpacked to disk, so a name in an archive leads nowhere; links in archives are refused.
"""

import gzip
import lzma
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pipeline.errors import UserError
from pipeline.progress import Progress

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)
_OPENERS: dict[str, Callable[[BinaryIO], IO[bytes]]] = {
    ".tar.xz": lzma.LZMAFile,
    ".tar.gz": lambda handle: gzip.GzipFile(fileobj=handle),
    ".tgz": lambda handle: gzip.GzipFile(fileobj=handle),
}
_BLOCK = 1 << 20

Wanted = Callable[[PurePosixPath], bool]


@dataclass(frozen=True)
class Member:
    """One file: its path inside the source, what messages call it, and its bytes."""

    path: PurePosixPath
    place: str
    content: bytes


def members(source: Path, wanted: Wanted) -> Iterator[Member]:
    """The wanted files of a folder or archive, in the order in which they lie there.

    `UserError` for a source that is missing, damaged, truncated or of another kind; an archive is
    read to its end, so that its checksums are verified even if the last files are not wanted.
    """
    if source.is_dir():
        yield from _of_folder(source, wanted)
    elif not source.exists():
        raise UserError(f"{source}: no such file or folder")
    elif source.name.endswith(".zip"):
        yield from _of_zip(source, wanted)
    elif opener := next((opener for end, opener in _OPENERS.items() if source.name.endswith(end)), None):
        yield from _of_tar(source, opener, wanted)
    else:
        raise UserError(f"{source}: unknown kind of archive; allowed: a folder, .zip, {', '.join(_OPENERS)}")


def named(source: Path, *choices: Sequence[str]) -> dict[str, Member]:
    """The files of the first of the `choices` that is complete, in whatever sub-folder of the source they lie.

    A choice is a list of names; `.gz` files are unpacked. `UserError` where all choices lack a file,
    or one is there twice or damaged.
    """
    found: dict[str, Member] = {}
    names = {name for choice in choices for name in choice}
    for member in members(source, lambda path: path.name.removesuffix(".gz") in names):
        name = member.path.name.removesuffix(".gz")
        if name in found:
            raise UserError(f"{source}: {name} is there twice: {found[name].path} and {member.path}")
        found[name] = unpacked(member)
    lacking = {choice: [name for name in choice if name not in found] for choice in map(tuple, choices)}
    for choice, missing in lacking.items():
        if not missing:
            return {name: found[name] for name in choice}
    closest = min(lacking, key=lambda choice: len(lacking[choice]))
    raise UserError(f"{source}: {lacking[closest][0]} is missing; expected are {', '.join(closest)}")


def unpacked(member: Member) -> Member:
    """The same file without gzip compression, if its name says that it has one."""
    if member.path.suffix != ".gz":
        return member
    try:
        return Member(member.path, member.place, gzip.decompress(member.content))
    except _DAMAGE as error:
        raise UserError(f"{member.place}: damaged or truncated ({_reason(error)})") from None


def _of_folder(source: Path, wanted: Wanted) -> Iterator[Member]:
    names = sorted(name for name in map(PurePosixPath, _names(source)) if wanted(name))
    with Progress(f"read {source.name}", len(names)) as progress:
        for name in names:
            try:
                content = (source / name).read_bytes()
            except OSError as error:
                raise UserError(f"{source / name}: cannot be read: {_reason(error)}") from None
            yield Member(name, str(source / name), content)
            progress.step()


def _names(source: Path) -> Iterator[str]:
    """All files below a folder, through links, too: the folder is the user's own."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {_reason(error)}")

    for folder, _, names in os.walk(source, onerror=refuse, followlinks=True):
        yield from (Path(folder, name).relative_to(source).as_posix() for name in names)


def _of_zip(source: Path, wanted: Wanted) -> Iterator[Member]:
    with _undamaged(source), zipfile.ZipFile(source) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir() and wanted(PurePosixPath(info.filename))]
        with Progress(f"read {source.name}", len(infos)) as progress:
            for info in infos:
                yield Member(PurePosixPath(info.filename), f"{source}: {info.filename}", archive.read(info))
                progress.step()


def _of_tar(source: Path, opener: Callable[[BinaryIO], IO[bytes]], wanted: Wanted) -> Iterator[Member]:
    megabytes = math.ceil(source.stat().st_size / 1e6)
    with (
        _undamaged(source),
        open(source, "rb") as packed,
        opener(packed) as stream,
        Progress(f"read {source.name}, MB", megabytes) as progress,
    ):
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as archive:
            while info := archive.next():
                archive.members = []  # keep no list of what was read
                path = PurePosixPath(info.name.lstrip("/"))
                if not info.isdir() and wanted(path):
                    yield Member(path, f"{source}: {info.name}", _content(source, archive, info))
                if progress.done < packed.tell() // 1_000_000:
                    progress.reach(packed.tell() // 1_000_000)
        while stream.read(_BLOCK):
            pass
        progress.reach(megabytes)


def _content(source: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if not info.isfile():
        raise UserError(f"{source}: {info.name} is a link or a device; only plain files are read")
    handle = archive.extractfile(info)
    assert handle is not None  # a plain file has content
    return handle.read()


@contextmanager
def _undamaged(source: Path) -> Iterator[None]:
    """Turns what reading a damaged archive raises into one line."""
    try:
        yield
    except (*_DAMAGE, RuntimeError, NotImplementedError) as error:
        refused = isinstance(error, OSError) and error.errno is not None
        what = "cannot be read" if refused else "damaged or truncated archive"
        raise UserError(f"{source}: {what} ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
