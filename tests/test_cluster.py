"""Cells on a Ray cluster of two nodes, here on one machine: what is computed where, and what a dead node costs."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dvc_project import DvcProject
from s3_server import BUCKET, CREDENTIALS, s3_server

from pipeline import cli
from pipeline.cluster import commit, driver, placing
from pipeline.errors import UserError
from pipeline.files import read_json

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[cluster]'")
# Ray's own warnings, and sockets that it leaves to the end of the process.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in ("ResourceWarning", "FutureWarning")]
ROOT = Path(__file__).parents[1]

# Stages as this project has them: outputs in git among metrics and among outs, one stage that reads a whole folder,
# and data that only the driver has. Each run leaves a line in a trace outside of all clones.
PIPELINE = """\
stages:
  prepare:
    cmd: python work.py prepare data/set.bin
    deps: [work.py]
    params: [size]
    outs: [data]
  train:
    matrix: {seed: [0, 1]}
    cmd: python work.py train-${item.seed} runs/${item.seed}/model.bin runs/${item.seed}/metrics.json
    deps: [work.py, data]
    params: [size, runtime]
    outs: ["runs/${item.seed}/model.bin"]
    metrics: ["runs/${item.seed}/metrics.json": {cache: false}]
  study:
    cmd: python work.py study results/study.bin results/study.md
    deps: [work.py, runs]
    params: [runtime]
    outs: [results/study.bin, results/study.md: {cache: false}]
  compare:
    cmd: python work.py compare results/comparison.md
    deps: [work.py, results/study.md]
    outs: [results/comparison.md: {cache: false}]
"""
WORK = """\
import json, os, pathlib, sys, time
stage, *outputs = sys.argv[1:]
trace = open(os.environ["TRACE"], "a", buffering=1)
trace.write(f"{stage} {os.environ.get('RAY_RAYLET_PID', 0)}\\n")
if stage in os.environ.get("BROKEN", "").split() or stage in pathlib.Path(os.environ["TRACE"] + ".broken").read_text():
    print("half of it is done")
    sys.exit("error: it broke")
state = pathlib.Path(".work/train") / stage / "state"
state.parent.mkdir(parents=True, exist_ok=True)
first = int(state.read_text()) if state.exists() else 0
for step in range(first, int(pathlib.Path(os.environ["TRACE"] + ".steps").read_text()) if stage == "train-0" else 0):
    trace.write(f"step {step}\\n")
    time.sleep(0.1)
    new = state.with_name("state.1.tmp")
    new.write_text(str(step + 1))
    new.replace(state)
record = pathlib.Path(".work/record") / f"{stage}.json"
record.parent.mkdir(parents=True, exist_ok=True)
record.write_text(json.dumps({"seconds": 1.5}))
for output in outputs:
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(output).write_text(json.dumps({"accuracy": len(stage)}))
trace.write(f"end {stage}\\n")
"""
EVERY_CELL = ["prepare", "train-0", "train-1", "study", "compare"]
OUTPUTS = ("runs/0/model.bin", "runs/0/metrics.json", "results/study.md", "results/comparison.md")


class Project(DvcProject):
    """The project in a folder, committed; `ran`: the stages that were run anywhere, in order."""

    def __init__(self, folder: Path, trace: Path) -> None:
        super().__init__(folder)
        self.trace = trace
        folder.mkdir(parents=True)
        self.write("dvc.yaml", PIPELINE)
        self.write("work.py", WORK)
        self.write("params.yaml", "size: 1\nruntime: {device: cpu}\n")
        self.write(".gitignore", ".work/\n")
        shutil.copy(ROOT / ".dvcignore", folder)
        self.run("git", "init", "--quiet")
        # What `dvc init` and `dvc remote add` write, in no time.
        (folder / ".dvc").mkdir()
        self.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
        self.write(".dvc/config", f"['remote \"store\"']\n    url = {folder.parent / 'remote'}\n")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def ran(self) -> list[str]:
        lines = [line.split() for line in self.trace.read_text().splitlines()]
        return [words[0] for words in lines if words[0] not in ("step", "end")]

    def steps(self) -> list[int]:
        return [int(line.split()[1]) for line in self.trace.read_text().splitlines() if line.startswith("step ")]

    def raylet_of(self, stage: str) -> int:
        return int(re.findall(rf"^{stage} (\d+)$", self.trace.read_text(), re.MULTILINE)[-1])

    def on_one_machine(self) -> bytes:
        """The dvc.lock that plain `dvc repro` writes in a clone of the commit."""
        clone = self.folder.parent / "single"
        self.run("git", "clone", "--quiet", str(self.folder), str(clone))
        aside = clone.parent / "aside"
        for end in (".steps", ".broken"):
            Path(f"{aside}{end}").write_text("0" if end == ".steps" else "-")
        subprocess.run(["dvc", "repro", "--quiet"], cwd=clone, env=os.environ | {"TRACE": str(aside)}, check=True)
        return (clone / "dvc.lock").read_bytes()


def settings(memory_gib: float = 0.1, device: str = "cpu") -> Any:
    """The parameters that matter for placing cells."""
    many, runtime = SimpleNamespace(devices=1), SimpleNamespace(device=device, threads=1)
    return SimpleNamespace(train=many, evaluation=many, runtime=runtime, cluster=SimpleNamespace(memory_gib=memory_gib))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What nodes have in their environment; returns the file of the trace."""
    trace = tmp_path_factory.mktemp("trace") / "trace.txt"
    (trace.parent / "nodes").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **CREDENTIALS,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": "/tmp",  # names of sockets must be short
            "TMPDIR": str(trace.parent / "nodes"),
            "TRACE": str(trace),
        }.items():
            patch.setenv(name, value)
        yield trace


@pytest.fixture(scope="module")
def cluster(environment: Path) -> Iterator[Any]:
    """Two nodes of one core; one has 1 GiB for tasks, the driver is there, the other one 4 GiB."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    made.add_node(num_cpus=1, memory=2**30, object_store_memory=80 * 2**20, include_dashboard=False)
    made.add_node(num_cpus=1, memory=4 * 2**30, object_store_memory=80 * 2**20)
    yield made
    made.shutdown()


@pytest.fixture
def project(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    environment.write_text("")
    Path(f"{environment}.steps").write_text("0")
    Path(f"{environment}.broken").write_text("-")
    made = Project(tmp_path / "project", environment)
    monkeypatch.chdir(made.folder)
    return made


def left_over() -> list[str]:
    """Processes of this module's cells, by their command and the trace in their environment; folders on nodes."""
    said = subprocess.run(["pgrep", "-f", r"work\.py|pipeline\.cluster\.guard|dvc"], capture_output=True, text=True)
    ours = []
    for number in said.stdout.split():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{number}/environ").read_bytes()
            ours += [number] if f"TRACE={os.environ['TRACE']}\0".encode() in environment else []
    return [*ours, *map(str, Path(os.environ["TRACE"]).parent.glob("nodes/*"))]


def nothing_is_left_over(seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while left_over() and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left_over()


@with_ray
def test_through_an_s3_remote_everything_is_as_on_one_machine_and_computed_once(
    cluster: Any, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    with s3_server() as address:
        project.run("dvc", "remote", "add", "--local", "s3", f"s3://{BUCKET}/adt")
        project.run("dvc", "remote", "modify", "--local", "s3", "endpointurl", address)
        # More memory than the driver's node has: every cell runs on the other one, which has a single core.
        assert driver.reproduce(settings(memory_gib=2), cluster.address, "s3", None, interval=0.1) == 0
    assert sorted(project.ran()) == sorted(EVERY_CELL)
    trace = [line.removeprefix("end ").split()[0] for line in project.trace.read_text().splitlines()]
    assert trace[::2] == trace[1::2], "never two cells on one core"
    assert (project.folder / "dvc.lock").read_bytes() == project.on_one_machine()
    single = project.folder.parent / "single"
    assert all((project.folder / name).read_bytes() == (single / name).read_bytes() for name in OUTPUTS)
    assert project.run("dvc", "status") == "Data and pipelines are up to date.\n"
    assert read_json(Path(".work/record/train-1.json")) == {"seconds": 1.5}
    assert "cells: 3/3 study done" in capfd.readouterr().out
    assert nothing_is_left_over()


@with_ray
def test_a_node_that_dies_costs_the_time_since_the_last_state_and_nothing_else(
    cluster: Any, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = 80  # of a tenth of a second; a worker may take some seconds to see that its node is dead
    Path(f"{project.trace}.steps").write_text(str(steps))
    kept = Path(".work/cluster/train@0/train/train-0/state")
    found: list[int] = []

    def kill() -> None:
        while len(project.steps()) < steps // 4 or not kept.exists():
            time.sleep(0.02)
        found.append(int(kept.read_text()))
        raylet = project.raylet_of("train-0")
        os.kill(raylet, signal.SIGKILL)
        os.waitpid(raylet, 0)  # or else its workers would see it there, as a zombie

    cluster.add_node(num_cpus=1, memory=4 * 2**30, object_store_memory=80 * 2**20)  # the one that will be left
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    # More memory than the driver's node has: cells run on others, and that node is not the one that dies.
    assert driver.reproduce(settings(memory_gib=2), cluster.address, "store", None, interval=0.5) == 0
    thread.join()
    assert sorted(set(project.ran())) == sorted(EVERY_CELL) and project.ran().count("train-0") == 2
    done = project.steps()
    again = next(step for before, step in zip(done, done[1:], strict=False) if step <= before)
    assert again >= found[0] > 0, "the second node went on from what was kept"
    assert done[-1] == steps - 1 and len(done) - steps < steps // 2, "an interval of 0.5 s, and what the dying did"
    assert (project.folder / "dvc.lock").read_bytes() == project.on_one_machine()
    said = capfd.readouterr().err
    assert re.search(r"train@0: lost with node \S+ \(\w+\) \(\w+\); submitted again, 1 of 5", said)
    assert not kept.exists(), "a cell that is done needs nothing to go on from"
    assert nothing_is_left_over()


@with_ray
def test_a_cell_that_fails_twice_is_named_with_its_log_and_a_rerun_computes_only_what_is_missing(
    cluster: Any, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(f"{project.trace}.broken").write_text("train-0")
    assert driver.reproduce(settings(), cluster.address, "store", 1) == 1
    assert sorted(project.ran()) == ["prepare", "train-0", "train-0", "train-1"]
    said = capfd.readouterr().err
    assert said.count("half of it is done") == 1 and "failed twice: train@0: error: it broke; log: .work/logs" in said
    assert "not run, for they wait for what failed: study" in said
    assert Path("runs/1/model.bin").exists() and "half of it is done" in Path(".work/logs/train@0.log").read_text()

    Path(f"{project.trace}.broken").write_text("-")
    assert driver.reproduce(settings(), cluster.address, "store", None) == 0
    assert sorted(project.ran()[4:]) == ["compare", "study", "train-0"]
    assert nothing_is_left_over()


@with_ray
@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_ended_driver_ends_its_cells_and_the_next_one_goes_on_from_their_states(
    cluster: Any, project: Project, signum: signal.Signals, status: int
) -> None:
    Path(f"{project.trace}.steps").write_text("1000")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_cluster import settings\n"
        "from pipeline.cluster import driver\n"
        "sys.exit(driver.reproduce(settings(), sys.argv[1], 'store', 1, interval=0.2))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, cluster.address, str(Path(__file__).parent)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    kept = Path(".work/cluster/train@0/train/train-0/state")
    deadline = time.monotonic() + 60
    while not kept.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(timeout=30) == status
    assert nothing_is_left_over()
    reached = int(kept.read_text())
    Path(f"{project.trace}.steps").write_text(str(reached + 1))
    assert driver.reproduce(settings(), cluster.address, "store", None) == 0
    assert project.steps()[-1] == reached and project.steps().count(reached - 1) == 1


# What is refused


@with_ray
@pytest.mark.parametrize(
    "address, remote, jobs, problem",
    [
        ("auto", None, None, r"--ray: also needs --remote NAME"),
        ("ray://127.0.0.1:10001", "store", None, r"no client addresses; run this on a machine of the cluster"),
        ("somewhere", "store", None, r"--ray somewhere: must be auto, or HOST:PORT"),
        ("127.0.0.1:1", "store", None, r"--ray 127.0.0.1:1: no Ray cluster answers \(Connection refused\)"),
        (None, "stroe", None, r"--remote stroe: no such DVC remote; there are: store"),
        (None, "store", 0, r"--jobs: must be at least 1 \(got 0\)"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    cluster: Any, project: Project, address: str | None, remote: str | None, jobs: int | None, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        driver.reproduce(settings(), address or cluster.address, remote, jobs)
    assert "\n" not in str(refused.value) and not project.ran()


@with_ray
def test_a_cell_that_no_node_could_run_is_refused_with_what_the_largest_has(cluster: Any, project: Project) -> None:
    problem = r"train@0: needs 1 cores and 9.00 GiB on one node; the largest node has 1 cores and 4.00 GiB"
    with pytest.raises(UserError, match=problem):
        driver.reproduce(settings(memory_gib=9), cluster.address, "store", None)
    assert not project.ran()


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--ray", "auto", "--remote", "store", "--force"], "error: --force: not with --ray"),
        (["--remote", "store"], "error: --remote: only with --ray; `python -m pipeline push` shares results without"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["repro", *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(problem) and said.count("\n") == 1


def test_what_the_cluster_computed_is_never_computed_again_here(project: Project) -> None:
    """As if the run cache had not come through the remote."""
    with pytest.raises(UserError, match=r"train@\d: was computed on the cluster.*stopped instead of computing it"):
        driver._repro([], {"train@0", "train@1"})
    assert not Path("runs").exists() and nothing_is_left_over()


def test_without_ray_one_line_says_how_to_install_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed here; `pip install -e '.\[cluster\]'` installs it"):
        driver.reproduce(settings(), "auto", "store", None)


def test_only_files_that_results_could_depend_on_must_be_committed(project: Project) -> None:
    project.run("dvc", "repro", "--quiet")
    project.write("notes.txt", "of no consequence")
    project.write("results/study.md", "an output, in git or not")
    commit.refuse_uncommitted()


@pytest.mark.parametrize(
    "name, problem",
    [
        ("params.yaml", r"uncommitted changes of params.yaml; nodes run the commit"),
        ("work.py", r"uncommitted changes of work.py"),
        (".gitattributes", None),
        ("runs/9/model.bin", r"not in the commit, but read by stages: runs/9/model.bin; add them to git or remove"),
    ],
)
def test_uncommitted_changes_are_refused_with_their_names(project: Project, name: str, problem: str | None) -> None:
    (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
    with open(project.folder / name, "a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match=problem) if problem else contextlib.nullcontext():
        commit.refuse_uncommitted()


@pytest.mark.parametrize(
    "device, nodes, expected",
    [
        ("auto", [{"CPU": 8, "GPU": 0, "memory": 64 * placing.GIB}], {"train@0": 0, "study": 0}),
        ("auto", [{"CPU": 8, "GPU": 2, "memory": 64 * placing.GIB}], {"train@0": 2, "study": 1}),
        ("cpu", [{"CPU": 8, "GPU": 2, "memory": 64 * placing.GIB}], {"train@0": 0, "study": 0}),
        ("cuda", [{"CPU": 8, "GPU": 8, "memory": 64 * placing.GIB}], {"train@0": 4, "study": 1}),
    ],
)
def test_a_cell_asks_for_the_gpus_that_it_uses_and_one_node_has(
    project: Project, device: str, nodes: list[placing.Resources], expected: dict[str, int]
) -> None:
    p = settings(device=device)
    p.train = SimpleNamespace(devices=4)
    graph: dict[str, set[str]] = {"train@0": set(), "study": set()}
    asked = placing.requests(p, graph, nodes)
    assert {cell: resources["GPU"] for cell, resources in asked.items()} == expected


def test_no_gpu_where_params_yaml_demands_one(project: Project) -> None:
    with pytest.raises(UserError, match="runtime.device: cuda, but no node of the Ray cluster has a GPU"):
        placing.requests(settings(device="cuda"), {}, [{"CPU": 8, "GPU": 0, "memory": placing.GIB}])


# The process that tidies up after a task


def start_guard(folder: Path) -> "subprocess.Popen[bytes]":
    (folder / "clone").mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cluster.guard", str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def asking(guard: "subprocess.Popen[bytes]") -> Callable[[str], None]:
    def ask(command: str) -> None:
        guard.stdin.write(json.dumps(["sh", "-c", command]).encode() + b"\n")
        guard.stdin.flush()

    return ask


def test_the_guard_answers_with_the_status_and_keeps_what_was_said(tmp_path: Path) -> None:
    guard = start_guard(tmp_path / "cell")
    ask = asking(guard)
    ask("echo good; pwd")
    assert guard.stdout.readline() == b"0\n"
    ask("exit 3")
    assert guard.stdout.readline() == b"3\n"
    assert (tmp_path / "cell/log.txt").read_text() == f"good\n{tmp_path}/cell/clone\n"
    guard.stdin.close()
    guard.stdout.read()
    guard.stdout.close()
    assert guard.wait() == 0 and not (tmp_path / "cell").exists()


def test_the_guard_ends_whatever_runs_when_its_asker_is_gone(tmp_path: Path) -> None:
    guard = start_guard(tmp_path / "cell")
    # A grandchild in a session of its own that outlives its parent.
    asking(guard)(f"setsid sh -c 'echo $$ > {tmp_path}/pid; sleep 300' & sleep 300")
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    guard.stdin.close()  # as when the asker is killed
    guard.stdout.read()
    guard.stdout.close()
    guard.wait()
    assert not (tmp_path / "cell").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
