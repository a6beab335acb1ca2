"""Results travel: through an S3-compatible remote instead of being computed again, and into a user's CI."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc_project import DvcProject
from s3_server import BUCKET, CREDENTIALS, s3_server

from pipeline import sharing
from pipeline.errors import UserError
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
# Stages as this project has them, one with a metric that lives in git, one with pages there; each run leaves a trace.
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
  study:
    cmd: python work.py study study.bin study.md folder/page.md
    deps: [work.py, runs/verdicts.bin]
    outs: [runs/study.bin, runs/study.md: {cache: false}, runs/folder: {cache: false}]
""",
    "params.yaml": "lam: 0.01\n",
    "work.py": """\
import pathlib, sys
stage, *outputs = sys.argv[1:]
folder = pathlib.Path("runs")
for output in outputs:
    (folder / output).parent.mkdir(parents=True, exist_ok=True)
    (folder / output).write_bytes(output.encode() * 1000)
if stage == "train":
    (folder / "train.json").write_text('{"accuracy": 57.1}')
with open("ran.txt", "a") as trace:
    trace.write(stage + "\\n")
""",
    ".gitignore": "ran.txt\n",
}
OUTPUTS = ("runs/model.bin", "runs/verdicts.bin", "runs/train.json", "runs/study.bin")
PAGES = ("runs/study.md", "runs/folder/page.md")  # `cache: false` among `outs`


class Project(DvcProject):
    """The project, with credentials for the remote."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        super().__init__(folder, CREDENTIALS | {"PATH": path, "DVC_NO_ANALYTICS": "1"})

    def ran(self) -> list[str]:
        trace = self.folder / "ran.txt"
        return trace.read_text().split() if trace.exists() else []

    def clone(self, folder: Path) -> "Project":
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Project(folder)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server that holds an empty bucket."""
    with s3_server() as address:
        yield address


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
    assert pushed.ran() == ["train", "attack", "study"]
    clone = pushed.clone(tmp_path / "clone")
    clone.run("dvc", "repro", "--pull")
    assert not clone.ran()
    assert all((clone.folder / name).read_bytes() == (pushed.folder / name).read_bytes() for name in OUTPUTS)
    assert (clone.folder / "dvc.lock").read_bytes() == (pushed.folder / "dvc.lock").read_bytes()


def test_without_dvc_lock_what_dvc_pushes_serves_only_stages_that_keep_every_output_in_dvc(
    pushed: Project, tmp_path: Path
) -> None:
    """`dvc push` leaves out what is `cache: false`; the next test has what this project adds."""
    clone = pushed.clone(tmp_path / "clone")
    (clone.folder / "dvc.lock").unlink()
    said = clone.run("dvc", "repro", "--pull")
    assert clone.ran() == ["train", "study"] and "Stage 'attack' is cached - skipping run" in said
    assert (clone.folder / "dvc.lock").read_bytes() == (pushed.folder / "dvc.lock").read_bytes()
    assert all((clone.folder / name).read_bytes() == (pushed.folder / name).read_bytes() for name in OUTPUTS)


def test_what_the_remote_does_not_have_is_run(pushed: Project, tmp_path: Path) -> None:
    clone = pushed.clone(tmp_path / "clone")
    (clone.folder / "params.yaml").write_text("lam: 0.1\n")
    clone.run("dvc", "repro", "--pull")
    assert clone.ran() == ["train"], "the same checkpoint came out, so the attack is fetched"


# `python -m pipeline push`


@pytest.fixture
def local(pushed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the project with its results, and an empty remote `folder` besides; the working folder."""
    project = Project(tmp_path / "project")
    shutil.copytree(pushed.folder, project.folder, symlinks=True)
    project.run("dvc", "remote", "add", "--local", "folder", str(tmp_path / "remote"))
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("PATH", project.environment["PATH"])
    return project


def without_lock(project: Project, folder: Path) -> Project:
    """A clone of the commit that knows the remote `folder` alone, and has no dvc.lock."""
    clone = project.clone(folder)
    (clone.folder / "dvc.lock").unlink()
    clone.run("dvc", "remote", "add", "--local", "--default", "folder", str(project.folder.parent / "remote"))
    return clone


def test_what_push_shares_is_restored_without_dvc_lock(local: Project, tmp_path: Path) -> None:
    before = {
        path: path.read_bytes() for path in local.folder.rglob("*") if path.is_file() and ".dvc" not in path.parts
    }
    assert sharing.push("folder") == ["train", "attack", "study"]
    assert before == {path: path.read_bytes() for path in before}, "the workspace is as it was"
    clone = without_lock(local, tmp_path / "clone")
    said = clone.run("dvc", "repro", "--pull")
    assert not clone.ran() and said.count("is cached - skipping run") == 3
    assert (clone.folder / "dvc.lock").read_bytes() == (local.folder / "dvc.lock").read_bytes()
    assert all((clone.folder / name).read_bytes() == (local.folder / name).read_bytes() for name in (*OUTPUTS, *PAGES))


def test_only_the_objects_of_the_named_stages_are_pushed(local: Project, tmp_path: Path) -> None:
    assert sharing.push("folder", ["train"]) == ["train"]
    clone = without_lock(local, tmp_path / "clone")
    clone.run("dvc", "repro", "--pull")
    assert clone.ran() == ["attack", "study"]


def test_a_stage_that_is_out_of_date_has_no_result_to_push(local: Project) -> None:
    (local.folder / "params.yaml").write_text("lam: 0.1\n")
    assert sharing.push("folder") == ["attack", "study"]
    with pytest.raises(UserError, match=r"train: out of date.*`dvc repro train` makes it"):
        sharing.push("folder", ["train"])


@pytest.mark.parametrize(
    "remote, stages, problem",
    [
        ("nowhere", [], r"--remote nowhere: no such DVC remote; there are: folder, store, web"),
        ("web", [], r"--remote web: http://localhost/dvc: DVC keeps no run cache on remotes over HTTP"),
        ("folder", ["trian"], r"trian: dvc.yaml has no such stage"),
    ],
)
def test_what_cannot_be_pushed_is_said_in_one_line(
    local: Project, remote: str, stages: list[str], problem: str
) -> None:
    local.run("dvc", "remote", "add", "--local", "web", "http://localhost/dvc")
    with pytest.raises(UserError, match=problem):
        sharing.push(remote, stages)


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
