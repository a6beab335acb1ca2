"""`python -m pipeline`: a user's mistakes end in one line and status 2."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Pipeline = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with the presets, and params.yaml from the default one."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "presets/digits.yaml", tmp_path / "params.yaml")
    return tmp_path


@pytest.fixture
def pipeline(workspace: Path) -> Pipeline:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=workspace, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    return run


def test_check_says_what_is_valid(pipeline: Pipeline) -> None:
    done = pipeline("check")
    assert done.returncode == 0
    assert done.stdout == "params.yaml is valid: preset digits, 4 methods x 3 seeds\n"


def test_preset_list_describes_every_preset(pipeline: Pipeline) -> None:
    lines = pipeline("preset", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    assert all(len(line.split()) > 4 for line in lines)


def test_preset_use_and_diff_go_together(pipeline: Pipeline) -> None:
    assert pipeline("preset", "diff").stdout == "no difference\n"
    assert pipeline("preset", "use", "digits", "--set", "train.epochs=3").returncode == 0
    assert pipeline("preset", "diff").stdout == "train.epochs: 20 -> 3\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preset", "use", "cifar"], "preset 'cifar': no such preset"),
        (["preset", "use", "digits", "--set", "threat.eps=big"], "threat.eps: input should be a valid number"),
        (["attack", "--checkpoint", "nothing.pt"], "--checkpoint nothing.pt: no such file"),
        (["attack", "--checkpoint", "params.yaml", "--attack", "pgd-1"], "--attack pgd-1: not in evaluation.attacks"),
        (["attack", "--checkpoint", "params.yaml"], "data/digits: no prepared data set here; run `dvc repro prepare`"),
        (["repro", "--jobs", "0"], "--jobs: must be at least 1 (got 0)"),
        (["ui", "--port", "99999"], "--port 99999: cannot be used"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    pipeline: Pipeline, workspace: Path, arguments: list[str], said: str
) -> None:
    before = {path: path.read_bytes() for path in workspace.rglob("*.yaml")}
    done = pipeline(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert {path: path.read_bytes() for path in workspace.rglob("*.yaml")} == before


@pytest.mark.parametrize("arguments", [[], ["repo"], ["preset"], ["repro", "--jobs", "two"]])
def test_a_wrong_command_shows_its_usage_and_status_2(pipeline: Pipeline, arguments: list[str]) -> None:
    done = pipeline(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m pipeline")


@pytest.mark.parametrize("command", ["check", "repro", "verify"])
def test_outside_a_workspace_the_missing_file_is_named(pipeline: Pipeline, workspace: Path, command: str) -> None:
    (workspace / "params.yaml").unlink()
    done = pipeline(command)
    assert (done.returncode, done.stderr) == (2, "error: params.yaml: no such file\n")
    assert {path.name for path in workspace.iterdir()} == {"presets"}
