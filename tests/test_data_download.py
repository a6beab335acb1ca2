"""Downloads from a server on this machine: continued, verified, and never half there."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.download import Remote, fetch
from pipeline.errors import UserError

CONTENT = np.random.default_rng(0).bytes(30_000)
NAME = "archive.tar.gz"


class Server(ThreadingHTTPServer):
    """Serves `content` under every name; what it does wrong is set by the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave()

    def behave(self, content: bytes = CONTENT, ranges: bool = True, most: int | None = None, status: int = 200) -> None:
        """`most`: bytes after which the connection breaks; `ranges`: whether it can start in the middle."""
        self.content, self.ranges, self.most, self.status = content, ranges, most, status
        self.asked: list[str | None] = []

    @property
    def remote(self) -> Remote:
        return Remote(f"http://127.0.0.1:{self.server_port}/files/{NAME}", hashlib.sha256(CONTENT).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wish = self.headers["Range"]
        self.server.asked.append(wish)
        if self.server.status != 200:
            return self.send_error(self.server.status)
        start = int(wish.removeprefix("bytes=").removesuffix("-")) if wish and self.server.ranges else 0
        if wish and start >= len(self.server.content):
            return self.send_error(416)
        rest = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}"
            )
        self.send_header("Content-Encoding", "x-gzip")  # as servers say of archives; the file is wanted as it is
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])
        return None

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.behave()
    return running


def partial(folder: Path, content: bytes) -> Path:
    """What an interrupted download leaves."""
    part = folder / "set" / f".{NAME}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    return part


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once_and_kept_as_it_was_sent(server: Server, tmp_path: Path) -> None:
    assert fetch(server.remote, "set", tmp_path).read_bytes() == CONTENT
    assert fetch(server.remote, "set", tmp_path) == tmp_path / "set" / NAME
    assert server.asked == [None] and files(tmp_path) == [NAME]


def test_progress_is_shown(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server.remote, "set", tmp_path)
    assert f"download {NAME}, MB: 1/1" in capsys.readouterr().out


def test_what_an_interrupted_download_left_is_continued(server: Server, tmp_path: Path) -> None:
    partial(tmp_path, CONTENT[:10_000])
    assert fetch(server.remote, "set", tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=10000-"] and files(tmp_path) == [NAME]


def test_a_connection_that_breaks_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.behave(most=12_000)
    assert fetch(server.remote, "set", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=12000-", "bytes=24000-"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.integers(0, len(CONTENT)), most=st.integers(5_000, 40_000), ranges=st.booleans())
def test_wherever_it_broke_the_file_is_the_same_or_absent(
    server: Server, tmp_path: Path, kept: int, most: int, ranges: bool
) -> None:
    for path in tmp_path.rglob("*"):
        path.is_file() and path.unlink()
    partial(tmp_path, CONTENT[:kept])
    server.behave(most=most, ranges=ranges)
    try:
        assert fetch(server.remote, "set", tmp_path).read_bytes() == CONTENT
    except UserError:
        assert not ranges and NAME not in files(tmp_path)


def test_a_connection_that_brings_nothing_new_ends_in_one_line_and_keeps_what_there_is(
    server: Server, tmp_path: Path
) -> None:
    server.behave(most=12_000, ranges=False)
    with pytest.raises(UserError, match=rf"{NAME}: cannot be downloaded: the connection broke; 12000 bytes are kept"):
        fetch(server.remote, "set", tmp_path)
    assert files(tmp_path) == [f".{NAME}.part"]
    server.behave()
    assert fetch(server.remote, "set", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [b"", b"another file"], ids=["new", "continued"])
def test_another_content_is_deleted(server: Server, tmp_path: Path, kept: bytes) -> None:
    server.behave(content=CONTENT if kept else CONTENT[:-1])
    if kept:
        partial(tmp_path, kept)
    with pytest.raises(
        UserError, match=rf"{NAME}: the file has not the expected SHA-256 .* data.folder or data.archive"
    ):
        fetch(server.remote, "set", tmp_path)
    assert files(tmp_path) == []


def test_a_file_that_was_changed_since_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    fetch(server.remote, "set", tmp_path).write_bytes(b"changed")
    assert fetch(server.remote, "set", tmp_path).read_bytes() == CONTENT


def test_what_the_server_says_is_told(server: Server, tmp_path: Path) -> None:
    server.behave(status=404)
    with pytest.raises(UserError, match=rf"{NAME}: cannot be downloaded: the server says 404 Not Found; or put {NAME}"):
        fetch(server.remote, "set", tmp_path)
    assert files(tmp_path) == []


def test_without_network_the_user_learns_where_to_put_the_file(tmp_path: Path, server: Server) -> None:
    nobody = Remote(f"http://127.0.0.1:1/{NAME}", "0" * 64)
    with pytest.raises(UserError, match=r"cannot be downloaded: no connection to 127\.0\.0\.1:1; or put"):
        fetch(nobody, "set", tmp_path)
    assert files(tmp_path) == []
