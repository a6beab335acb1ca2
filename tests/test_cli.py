"""`python -m pipeline`: a user's mistakes end in one line and status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pipeline(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_check_says_what_is_valid() -> None:
    done = pipeline("check")
    assert done.returncode == 0
    assert done.stdout == "params.yaml is valid: preset digits, 4 methods x 3 seeds\n"


def test_preset_list_describes_every_preset() -> None:
    lines = pipeline("preset", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    assert all(len(line.split()) > 4 for line in lines)


def test_preset_diff_of_the_committed_file_is_empty() -> None:
    assert pipeline("preset", "diff").stdout == "no difference\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preset", "use", "cifar"], "preset 'cifar': no such preset"),
        (["preset", "use", "digits", "--set", "threat.eps=big"], "threat.eps: input should be a valid number"),
        (["repro", "--jobs", "0"], "--jobs: must be at least 1 (got 0)"),
        (["ui", "--port", "99999"], "--port 99999: cannot be used"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], said: str) -> None:
    before = (ROOT / "params.yaml").read_bytes()
    done = pipeline(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert (ROOT / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("arguments", [[], ["repo"], ["preset"], ["repro", "--jobs", "two"]])
def test_a_wrong_command_shows_its_usage_and_status_2(arguments: list[str]) -> None:
    done = pipeline(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m pipeline")


@pytest.mark.parametrize("command", ["check", "repro", "verify"])
def test_outside_a_workspace_the_missing_file_is_named(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from pipeline.cli import main; main([{command!r}])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (2, "error: params.yaml: no such file\n")
    assert not list(tmp_path.iterdir())
