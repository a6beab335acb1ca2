"""Results travel: through an S3-compatible remote instead of being computed again, and into a user's CI."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
BUCKET = "results"
# Two stages as this project has them, one with a metric that lives in git; each run leaves a trace.
PROJECT = {
    "dvc.yaml": """\
stages:
  train:
    cmd: python work.py train model.bin
    deps: [work.py]
    params: [lam]
    outs: [runs/model.bin]
    metrics: [runs/train.json: {cache: false}]
  attack:
    cmd: python work.py attack verdicts.bin
    deps: [work.py, runs/model.bin]
    outs: [runs/verdicts.bin]
""",
    "params.yaml": "lam: 0.01\n",
    "work.py": """\
import pathlib, sys
stage, output = sys.argv[1:]
folder = pathlib.Path("runs")
folder.mkdir(exist_ok=True)
(folder / output).write_bytes(stage.encode() * 1000)
if stage == "train":
    (folder / "train.json").write_text('{"accuracy": 57.1}')
with open("ran.txt", "a") as trace:
    trace.write(stage + "\\n")
""",
    ".gitignore": "ran.txt\n",
}
OUTPUTS = ("runs/model.bin", "runs/verdicts.bin", "runs/train.json")


class Project:
    """A DVC project in a folder, and commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "made")

    def ran(self) -> list[str]:
        trace = self.folder / "ran.txt"
        return trace.read_text().split() if trace.exists() else []

    def clone(self, folder: Path) -> "Project":
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Project(folder)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server that holds an empty bucket."""
    missing = [name for name in ("dvc_s3", "moto") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install -e '.[s3]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def pushed(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, run once and pushed with its run cache."""
    project = Project(tmp_path_factory.mktemp("project"))
    for name, content in PROJECT.items():
        (project.folder / name).write_text(content)
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    project.run("dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/adt")
    project.run("dvc", "remote", "modify", "store", "endpointurl", endpoint)
    project.commit()
    project.run("dvc", "repro", "--quiet")
    project.commit()
    project.run("dvc", "push", "--run-cache", "--quiet")
    return project


def test_a_colleague_fetches_from_s3_instead_of_training(pushed: Project, tmp_path: Path) -> None:
    assert pushed.ran() == ["train", "attack"]
    clone = pushed.clone(tmp_path / "clone")
    clone.run("dvc", "repro", "--pull")
    assert not clone.ran()
    assert all((clone.folder / name).read_bytes() == (pushed.folder / name).read_bytes() for name in OUTPUTS)
    assert (clone.folder / "dvc.lock").read_bytes() == (pushed.folder / "dvc.lock").read_bytes()


def test_without_dvc_lock_the_run_cache_serves_the_stages_that_keep_every_output_in_dvc(
    pushed: Project, tmp_path: Path
) -> None:
    """`dvc push` leaves out what is `cache: false`, so a stage with a metric in git needs dvc.lock as well."""
    clone = pushed.clone(tmp_path / "clone")
    (clone.folder / "dvc.lock").unlink()
    said = clone.run("dvc", "repro", "--pull")
    assert clone.ran() == ["train"] and "Stage 'attack' is cached - skipping run" in said
    assert (clone.folder / "dvc.lock").read_bytes() == (pushed.folder / "dvc.lock").read_bytes()
    assert all((clone.folder / name).read_bytes() == (pushed.folder / name).read_bytes() for name in OUTPUTS)


def test_what_the_remote_does_not_have_is_run(pushed: Project, tmp_path: Path) -> None:
    clone = pushed.clone(tmp_path / "clone")
    (clone.folder / "params.yaml").write_text("lam: 0.1\n")
    clone.run("dvc", "repro", "--pull")
    assert clone.ran() == ["train"], "the same checkpoint came out, so the attack is fetched"


# The workflow for users' CI


@pytest.fixture
def workflow() -> str:
    return (ROOT / ".github/workflows/reproduce.yml").read_text()


def test_the_workflow_runs_what_ci_runs_and_writes_the_summary() -> None:
    job = read_yaml(ROOT / ".github/workflows/reproduce.yml")["jobs"]["reproduce"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    ci = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    assert commands[: len(ci)] == ci == ["make test", "make verify"]
    assert "pipeline verify --markdown" in commands[-1] and "GITHUB_STEP_SUMMARY" in commands[-1]
    assert 0 < job["timeout-minutes"] <= 360
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions and all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in actions)
    setup = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"] == "3.11"


def test_the_workflow_has_the_environment_of_ci_and_neither_secrets_nor_hosts(workflow: str) -> None:
    document = read_yaml(ROOT / ".github/workflows/reproduce.yml")
    exported = re.findall(r"^export (\w+)=(\S+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert document["env"] == dict(exported)
    assert document["permissions"] == {"contents": "read"}
    assert "on" in document and "secrets" not in workflow
    assert "://" not in workflow and "token" not in workflow.lower()
