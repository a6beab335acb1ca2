"""From a file, a cell or a number back to what made it, with everything looked up again on the way."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded_workspace import ROOT, Recorded, description

from pipeline import live
from pipeline.errors import UserError
from pipeline.reproduction import provenance


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    made = Recorded(tmp_path_factory.mktemp("original"))
    made.make()
    return made


@pytest.fixture
def made(original: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Seeds 0, 1, 2 of both methods have 100, 90, 80 % under FGSM and one point less under PGD."""
    copy = Recorded(shutil.copytree(original.folder, tmp_path / "made"))
    monkeypatch.chdir(copy.folder)
    return copy


def digest(path: str, kind: str = "md5") -> str:
    return hashlib.new(kind, Path(path).read_bytes()).hexdigest()


def trace(*arguments: str) -> str:
    """The walk on one line with single spaces, so that where it was wrapped does not matter."""
    return " ".join("\n".join(provenance.trace(*arguments)).split())


def test_a_cell_leads_to_runs_checkpoints_parameters_data_and_commands(made: Recorded) -> None:
    said = trace("adt_exp", "worst-case")
    assert said.startswith("adt_exp worst-case: mean 89 %, sample deviation 10, over seeds 0, 1, 2")
    for seed, accuracy in ((0, 99), (1, 89), (2, 79)):
        table, model = f"verdicts/adt_exp/seed-{seed}.npz", f"runs/adt_exp/seed-{seed}/model.safetensors"
        assert f"seed {seed}: {accuracy} %" in said
        assert f"{table}, md5 {digest(table)}; dvc repro attack@adt_exp-{seed}" in said
        assert f"{accuracy} % of 100 images hold, as the comparison says" in said
        assert f"{model}, md5 {digest(model)}; dvc repro train@adt_exp-{seed} sha256 {digest(model, 'sha256')}" in said
        assert f"key {description('adt_exp', seed)['key']} (runs/adt_exp/seed-{seed}/run.json)" in said
    assert said.count("method as=released, steps=2") == 1, "what the runs share is said once"
    assert "threat.set=linf, threat.eps=0.2" in said and "milestones" not in said
    assert "data digits, sha256 f2e8" in said
    assert "receipt python=3.11" in said or "receipt python=3.12" in said
    assert "BUT" not in said and "NOT" not in said


def test_a_run_of_this_workspace_tells_its_commit_and_machine(made: Recorded) -> None:
    key = description("at_pgd", 1)["key"]
    live.record(key, {"seconds": 4.5, "machine": {"torch": "9.9"}, "commit": "0123456789", "dirty": True})
    said = trace("at_pgd", "natural")
    assert "trained here, in 4.5 s, at commit 0123456 with uncommitted changes on torch=9.9" in said
    commit = made.git("log", "-1", "--format=%h, %cs: %s").strip()
    assert said.count(f"trained elsewhere; {commit} (first to record these bytes in dvc.lock)") == 2


def test_a_file_leads_to_stage_parameters_dependencies_and_the_commit_that_changed_it(made: Recorded) -> None:
    commit = made.git("log", "-1", "--format=%h").strip()
    made.write("README.md", "more")
    made.commit()
    said = trace("results/comparison.md")
    assert said.startswith("results/comparison.md made by dvc repro compare (python -m stages.compare)")
    assert f"bytes md5 {digest('results/comparison.md')}" in said
    assert "params.yaml: comparison.reference=at_pgd" in said and "matrix.seeds=[0, 1, 2]" in said
    assert "depends on verdicts md5" in said and f"commit {commit}, " in said
    assert "(last change of the file in git)" in said


def test_a_run_file_leads_to_the_run_too_and_a_file_of_a_folder_to_the_folder(made: Recorded) -> None:
    said = trace(str(made.folder / "runs/adt_exp/seed-1/model.safetensors"))
    assert said.startswith("runs/adt_exp/seed-1/model.safetensors made by dvc repro train@adt_exp-1")
    assert "methods.adt_exp.lam=0.01" in said and f"key {description('adt_exp', 1)['key']}" in said
    said = trace("./data/digits/test.npz")
    assert "made by dvc repro prepare" in said and f"bytes md5 {digest('data/digits/test.npz')}" in said
    assert "part of data/digits md5" in said and "(first to record these bytes in dvc.lock)" in said


def test_a_number_leads_to_every_cell_that_rounds_to_it(made: Recorded) -> None:
    made.replace("results/comparison.json", '"0": 99.0', '"0": 57.0667')
    said = trace("57.1")
    assert said.startswith("57.1 stands in results/comparison.json as at_pgd pgd-3: seed 0 at_pgd pgd-3: mean 89")
    assert "seed 0: 57.0667 %" in said and "seed 1:" not in said
    assert trace("57.07 %").startswith("57.07 % stands in results/comparison.json as at_pgd pgd-3: seed 0 ")
    said = trace("89.0")
    assert "at_pgd pgd-3: mean over seeds, seed 1" in said
    assert "more than 3 cells" in said and "verdicts" not in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda made: made.replace("results/comparison.json", '"1": 89.0', '"1": 92.0'),
            "89 % of 100 images hold, NOT THE 92 % OF THE COMPARISON",
        ),
        (
            lambda made: made.write("runs/at_pgd/seed-0/model.safetensors", "another"),
            "OF ANOTHER CHECKPOINT, with sha256",
        ),
        (lambda made: made.write("runs/at_pgd/seed-0/model.safetensors", "another"), "BUT dvc.lock SAYS"),
        (
            lambda made: Path("verdicts/at_pgd/seed-1.npz").unlink(),
            "verdicts/at_pgd/seed-1.npz, md5 missing (`dvc pull` fetches it)",
        ),
        (lambda made: made.write("verdicts/at_pgd/seed-1.npz", "no table"), "NOT A VERDICT TABLE"),
        (
            lambda made: Path("runs/at_pgd/seed-1/run.json").unlink(),
            "run runs/at_pgd/seed-1/run.json is not here; `dvc pull` fetches it",
        ),
        (lambda made: made.write("receipt.json", '{"dvc.lock": "0"}'), "receipt.json belongs to another dvc.lock"),
        (lambda made: Path("receipt.json").unlink(), "no receipt.json here"),
    ],
)
def test_what_does_not_fit_together_is_said(made: Recorded, change: Callable[[Recorded], None], told: str) -> None:
    change(made)
    assert told in trace("at_pgd", "pgd-3")


def test_an_edited_file_does_not_hide_behind_its_commit(made: Recorded) -> None:
    made.write("results/comparison.md", "better")
    said = trace("results/comparison.md")
    assert "BUT dvc.lock SAYS" in said and "AND THE FILE DIFFERS FROM IT NOW" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["12.34"], "no mean and no run in results/comparison.json rounds to it"),
        (["README.md"], "no output of a stage in dvc.lock, no number, and no method (at_pgd, adt_exp)"),
        (["adt_exp"], "name a metric, too: natural, fgsm, pgd-3, worst-case"),
        (["adt_exp", "pgd-20"], "no such cell in results/comparison.json; methods: at_pgd, adt_exp; metrics: natural"),
        (["mart", "natural"], "provenance mart natural: no such cell"),
    ],
)
def test_what_is_not_there_is_one_line(made: Recorded, arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        provenance.trace(*arguments)
    assert told in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["dvc.lock", "results/comparison.json"])
def test_nothing_made_yet_is_one_line(made: Recorded, name: str) -> None:
    Path(name).unlink()
    with pytest.raises(UserError, match=f"^{name}: no such file"):
        provenance.trace("57.1")


def test_the_command_prints_the_walk(made: Recorded) -> None:
    command = [sys.executable, "-m", "pipeline", "provenance", "adt_exp", "fgsm"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("adt_exp fgsm: mean 90 %")
    assert max(map(len, done.stdout.splitlines())) <= 120
