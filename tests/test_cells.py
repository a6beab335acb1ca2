"""Cells as other schedulers see them: the listing, shares of it, and an array of Slurm jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_dvc import describe, events, install, started

from pipeline import cells, params
from pipeline.cli import main
from pipeline.graph import Graph
from pipeline.slots import Slots

ROOT = Path(__file__).parents[1]
TRAIN = [f"train@{method}-0" for method in ("at_pgd", "adt_exp", "adt_exp_am")]
ATTACK = [cell.replace("train", "attack") for cell in TRAIN]
GRAPH: Graph = (
    {"prepare": set()}
    | {cell: {"prepare"} for cell in TRAIN}
    | {attack: {"prepare", cell} for attack, cell in zip(ATTACK, TRAIN, strict=True)}
    | {"compare": set(ATTACK)}
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that say what there is to run, with a stand-in for DVC; nothing is done yet."""
    install(tmp_path, monkeypatch)
    describe(GRAPH)
    Path("dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    written = (ROOT / "params.yaml").read_text()
    assert "device: auto" in written
    Path("params.yaml").write_text(written.replace("device: auto", "device: cpu"))  # else every command loads torch
    monkeypatch.setenv("PAUSE", "0.02")
    monkeypatch.setenv("ADT_LIVE", "0")
    return tmp_path


def done(*stages: str) -> None:
    Path("done").mkdir(exist_ok=True)
    for stage in stages:
        Path("done", stage).touch()


def command(*arguments: str) -> int:
    """The status of `python -m pipeline cells ...`."""
    with pytest.raises(SystemExit) as ended:
        main(["cells", *arguments])
    return int(ended.value.code or 0)


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert command(*arguments) == 0
    return json.loads(capsys.readouterr().out)


# The listing


def test_cells_are_listed_in_an_order_in_which_they_can_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = listed(capsys)
    assert {str(cell["stage"]): set(cell["waits_for"]) for cell in found} == GRAPH
    seen: dict[object, int] = {}
    for cell in found:
        assert cell["level"] == max((seen[before] + 1 for before in cell["waits_for"]), default=0)
        seen[cell["stage"]] = cell["level"]
    assert all(cell["outdated"] is True for cell in found)


def test_a_listing_leaves_out_what_is_up_to_date_unless_asked(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("prepare", TRAIN[0], ATTACK[0])
    assert [cell["stage"] for cell in listed(capsys, "--level", "1")] == TRAIN[1:]
    assert [cell["stage"] for cell in listed(capsys, "--stage", "attack")] == ATTACK[1:]
    everything = listed(capsys, "--level", "1", "--all")
    assert {cell["stage"]: cell["outdated"] for cell in everything} == dict(
        zip(TRAIN, [False, True, True], strict=True)
    )
    assert listed(capsys, "--stage", TRAIN[0]) == []


def test_a_listed_command_runs_that_cell_and_nothing_else(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in listed(capsys, "--level", "1"):
        before = started()
        subprocess.run(str(cell["command"]), shell=True, check=True)
        assert started() == [*before, cell["stage"]]


def test_needs_are_those_of_params_yaml(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = Path("params.yaml").read_text().replace("device: cpu", "device: auto")
    assert written.count("  devices: 1\n") == 2
    Path("params.yaml").write_text(written.replace("  devices: 1\n", "  devices: 2\n", 1))  # of train
    p = params.load()
    train, attack, compare = (listed(capsys, "--stage", stage)[0]["needs"] for stage in ("train", "attack", "compare"))
    threads, memory = p.runtime.threads, p.cluster.memory_gib
    assert train == {"devices": 2, "device": "auto", "cores": 2 * threads, "memory_gib": 2 * memory}
    assert attack == {"devices": 1, "device": "auto", "cores": threads, "memory_gib": memory}
    assert compare == {"devices": 0, "device": "cpu", "cores": 1, "memory_gib": memory}


# Shares


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shares_are_all_there_is_to_do_and_nothing_twice_whatever_others_finish_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADT_LIVE", "0")
    (tmp_path / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    level = {f"train@m-{seed}": set() for seed in range(7)}
    p = params.load(ROOT / "params.yaml")
    ran: list[str] = []

    def run_cells(p: object, graph: Graph, slots: Slots) -> int:
        ran.extend(graph)
        return 0

    monkeypatch.setattr(cells, "run_cells", run_cells)
    monkeypatch.setattr(cells, "stage_graph", lambda: level)
    monkeypatch.setattr(cells, "outdated", lambda _, cells: {s: set() for s in cells if s not in [*ran, "train@m-2"]})
    shares = []
    for part in range(1, parts + 1):
        before = len(ran)
        assert cells.run_share(p, 0, None, f"{part}/{parts}") == 0
        shares.append(len(ran) - before)
    assert sorted(ran) == [f"train@m-{seed}" for seed in range(7) if seed != 2]
    assert max(shares) - min(shares) <= 2, "dealt out evenly, but for the one that is up to date"


def test_a_share_runs_its_cells(workspace: Path) -> None:
    done("prepare")
    assert command("--level", "1", "--shard", "1/2") == 0
    assert set(started()) == {TRAIN[0], TRAIN[2]}
    assert command("--stage", "train", "--shard", "1/2") == 0, "all done: an empty share is none the worse"
    assert len(started()) == 2


def test_everything_in_one_share_runs_in_order(workspace: Path) -> None:
    assert command("--shard", "1/1") == 0
    order = events()
    for stage, before in GRAPH.items():
        assert all(order.index(("end", earlier)) < order.index(("start", stage)) for earlier in before)


def test_a_failed_cell_of_a_share_is_named_with_what_it_said(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done("prepare", *TRAIN)
    Path("fail.txt").write_text(ATTACK[1])
    monkeypatch.setenv("SAID", "error: disk full")
    assert command("--shard", "1/1") == 1
    summary = capsys.readouterr().err.splitlines()[-2:]
    assert summary == [
        f"failed: {ATTACK[1]}: error: disk full; log: .work/logs/{ATTACK[1]}.log",
        "not run, for they wait for what failed: compare",
    ]
    assert {stage for what, stage in events() if what == "end"} == set(ATTACK)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--shard", "0/3"], "--shard: must be I/N"),
        (["--shard", "5/4"], "--shard: must be I/N"),
        (["--shard", "x"], "--shard: must be I/N"),
        (["--shard", "1/2/3"], "--shard: must be I/N"),
        (["--shard", "1/1", "--jobs", "0"], "--jobs: must be at least 1"),
        (["--level", "4"], "--level: no level 4; there are 0 to 3"),
        (["--level", "-1"], "--level: no level -1"),
        (["--stage", "trian"], "--stage: no stage 'trian' in dvc.yaml; there are: prepare, train, attack, compare"),
        (["--level", "1", "--stage", "train"], "--level, --stage: give one of the two"),
        (["--level", "1", "--shard", "3/3"], f"{TRAIN[2]}: waits for prepare, which is out of date; run that first"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_nothing_runs(
    workspace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert command(*arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and problem in said.err and not said.out
    assert not events()


# Slurm

SBATCH = """\
import os, pathlib, re, subprocess, sys
options = dict(a[2:].split("=", 1) if "=" in a else (a[2:], "") for a in sys.argv[1:] if a.startswith("--"))
rest = [a for a in sys.argv[1:] if not a.startswith("--")]
jobs = pathlib.Path("jobs")
jobs.mkdir(exist_ok=True)
number = str(1000 + len(list(jobs.iterdir())))
kind, _, before = options.get("dependency", "").partition(":")
status = 0
if kind and (kind != "afterok" or (jobs / before).read_text() != "0"):
    status = 1  # DependencyNeverSatisfied
elif "wrap" in options:
    status = subprocess.call(["bash", "-c", rest[0]])
else:
    lines = pathlib.Path(rest[0]).read_text().splitlines()
    written = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH"))
    first, _, last = options.get("array", os.environ.get("ARRAY", written["array"])).partition("-")
    tasks = range(int(first), int(last or first) + 1)
    one = {"SLURM_ARRAY_TASK_COUNT": str(len(tasks)), "SLURM_SUBMIT_DIR": os.getcwd()}
    script = [os.path.abspath(rest[0]), *rest[1:]]
    work = [subprocess.Popen(["bash", *script], cwd="/", env=os.environ | one | {"SLURM_ARRAY_TASK_ID": str(task)},
                             stdout=sys.stderr) for task in tasks]
    status = max(task.wait() for task in work)
(jobs / number).write_text(str(status))
print(number)
"""


def test_an_array_of_slurm_jobs_runs_every_cell_once_and_then_the_rest(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripts of docs/ against a stand-in for sbatch that runs the tasks of an array at once, here."""
    sbatch = workspace / "bin/sbatch"
    sbatch.write_text(f"#!{sys.executable} -IS\n{SBATCH}")
    python = workspace / "bin/python"  # all but the last command, which needs a whole workspace
    python.write_text(f'#!/bin/sh\necho "$*" >> commands\n[ "$3" = repro ] || exec {sys.executable} "$@"\n')
    for script in (sbatch, python):
        script.chmod(0o755)
    (workspace / "docs").symlink_to(ROOT / "docs")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ARRAY": "1-2"}
    done_by = subprocess.run(["bash", "docs/slurm-submit.sh"], env=environment, capture_output=True, text=True)
    assert done_by.returncode == 0 and sorted(started()) == sorted(["prepare", *TRAIN, *ATTACK]), done_by.stderr
    commands = Path("commands").read_text().splitlines()
    assert commands[0] == "-m pipeline cells --level 0 --shard 1/1" and commands[-1] == "-m pipeline repro"
    shares = [f"-m pipeline cells --level {level} --shard {part}/2" for level in (1, 2) for part in (1, 2)]
    assert sorted(commands[1:-1]) == shares


@pytest.mark.parametrize("script", ["slurm.sh", "slurm-submit.sh"])
def test_the_scripts_are_valid_shell(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / "docs" / script], check=True)
