"""Downloading a source's official files: verified, resumed after an interruption, never half there.

Only the stage prepare calls this; training never touches the network.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.progress import Progress

FOLDER = Path(".work/downloads")
_BLOCK = 1 << 18
_TIMEOUT = (10, 60)  # seconds to connect, and between two blocks


@dataclass(frozen=True)
class Remote:
    """A file on the network and the SHA-256 (hex) that it must have."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without the path."""
        return self.url.rsplit("/", 1)[-1]


def fetch(remote: Remote, name: str, folder: Path = FOLDER) -> Path:
    """The verified file in `folder`/`name`, downloaded only if it is not there yet.

    What an interrupted download left is continued, if the server can. `UserError` where there is no
    connection, the server refuses, or the content is not the expected one (which is then deleted).
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    place = folder / name
    try:
        path = pooch.retrieve(remote.url, f"sha256:{remote.sha256}", fname=remote.name, path=place, downloader=_resume)
    except ValueError as error:  # pooch found another checksum
        if "hash" not in str(error):
            raise
        told = f"the file has not the expected SHA-256 {remote.sha256} and was deleted"
        raise UserError(f"{remote.url}: {told}; {_remedy(remote.url)}") from None
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror or error}") from error
    return Path(path)


def fetch_all(remotes: Sequence[Remote], name: str) -> Path:
    """The folder with all these files, each as `fetch` gives it."""
    return [fetch(remote, name) for remote in remotes][0].parent


def _resume(url: str, output: str, _: Any) -> None:
    """Download `url` to `output` through a partial file beside it, which later calls continue.

    A broken connection is taken up again as long as every attempt brings something new.
    """
    part = Path(output).with_name(f".{url.rsplit('/', 1)[-1]}.part")
    while True:
        before = _size(part)
        problem = _request(url, part)
        if problem is None:
            os.replace(part, output)
            return
        if _size(part) <= before:
            kept = f"; {_size(part)} bytes are kept and the next run continues there" if _size(part) else ""
            raise UserError(f"{url}: cannot be downloaded: {problem}{kept}; {_remedy(url)}")


def _request(url: str, part: Path) -> str | None:
    """One request for what `part` lacks, appended to it; what went wrong, or None when all is there."""
    import requests
    import urllib3

    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if start and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return None  # nothing is missing; the checksum will tell
            if not response.ok:
                return f"the server says {response.status_code} {response.reason}"
            start = start if _continues(response.headers.get("Content-Range", ""), start) else 0
            total = start + int(response.headers.get("Content-Length", 0))
            _store(response.raw, part, start, total)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        absent = isinstance(error, requests.ConnectionError)
        return f"no connection to {urlsplit(url).netloc}" if absent else "the connection broke"
    return None


def _store(stream: Any, part: Path, start: int, total: int) -> None:
    """Write the stream behind the first `start` bytes of `part`, as it is sent: archives stay packed."""
    label = f"download {part.name[1:].removesuffix('.part')}, MB"
    with Progress(label, math.ceil(total / 1e6)) as progress, open(part, "ab") as handle:
        handle.truncate(start)
        for block in stream.stream(_BLOCK, decode_content=False):
            handle.write(block)
            if progress.done < (megabytes := handle.tell() // 1_000_000):
                progress.reach(megabytes)
        if progress.done < progress.total:
            progress.reach(progress.total)


def _continues(content_range: str, start: int) -> bool:
    """Whether the server sends what follows the first `start` bytes, not everything again."""
    return content_range.startswith(f"bytes {start}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remedy(url: str) -> str:
    return f"or put {url.rsplit('/', 1)[-1]} where data.folder or data.archive of params.yaml says"
