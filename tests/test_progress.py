"""Progress: plain lines when piped, a bar on a terminal."""

import io
import sys

import pytest

from pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_output_is_plain_lines_and_always_has_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 3, interval=1e9) as bar:
        for epoch in range(3):
            bar.step(f"epoch {epoch}")
    assert capsys.readouterr().out == "train: 3/3 epoch 2\n"


def test_a_resumed_count_goes_on_from_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 5, interval=0) as bar:
        bar.reach(4)
        bar.step("last")
    assert capsys.readouterr().out == "train: 4/5\ntrain: 5/5 last\n"


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train", 2) as bar:
        bar.step("one")
        bar.step("two")
    assert capsys.readouterr().out == ""
    assert "2/2" in terminal.getvalue() and "two" in terminal.getvalue()
