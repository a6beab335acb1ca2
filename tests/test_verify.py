"""Holding a reproduction against the record: to the byte on the same machine, by tolerance elsewhere."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from recorded_workspace import METHODS, ROOT, SEEDS, Recorded

from pipeline.errors import UserError
from pipeline.reproduction import lock
from pipeline.reproduction.findings import MOST, Compared, Findings, Row
from pipeline.reproduction.tolerance import tolerance
from pipeline.reproduction.verify import pull, verify
from pipeline.yaml_files import parse_text, read_yaml


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    made = Recorded(tmp_path_factory.mktemp("original"))
    made.make()
    return made


@pytest.fixture
def made(original: Recorded, tmp_path: Path) -> Recorded:
    return Recorded(shutil.copytree(original.folder, tmp_path / "made"))


@pytest.fixture
def check(made: Recorded, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(**options: object) -> tuple[int, str]:
        status = verify(made.params, made.folder, **options)
        return status, capsys.readouterr().out

    return run


Check = Callable[..., tuple[int, str]]


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_what_was_recorded_here_is_equal_to_the_byte(check: Check) -> None:
    status, said = check()
    assert status == 0 and said.endswith("verify: reproduced\n")
    assert "must be equal to the byte" in said
    assert not lines_with(said, "DIFFERS") and not lines_with(said, "MISSING")


def edit_comparison(made: Recorded) -> None:
    made.replace("results/comparison.json", '"mean": 89.0', '"mean": 90.0')


def edit_verdicts(made: Recorded) -> None:
    table = made.folder / "verdicts/adt_exp/seed-1.npz"
    content = bytearray(table.read_bytes())
    content[-200] ^= 1
    table.write_bytes(content)


def edit_commands(made: Recorded) -> None:
    made.replace("dvc.yaml", "stages.train --method", "stages.train --fast --method")


@pytest.mark.parametrize(
    ("perturb", "told"),
    [
        (edit_comparison, ["output results/comparison.json, compare", "DIFFERS"]),
        (edit_comparison, ["at_pgd pgd-3", "89", "90", "+1", "DIFFERS"]),
        (edit_verdicts, ["output verdicts/adt_exp/seed-1.npz, attack@adt_exp-1", "DIFFERS"]),
        (
            lambda made: made.replace(
                "params.yaml", "adt_exp: {as: released, lam: 0.01", "adt_exp: {as: released, lam: 0.5"
            ),
            ["parameter methods.adt_exp.lam, train@adt_exp-0 and 2 more", "0.01", "0.5", "DIFFERS"],
        ),
        (
            lambda made: made.write("data/digits/test.npz", "other"),
            ["output data/digits (test.npz), prepare", "DIFFERS"],
        ),
        (lambda made: made.write("data/digits/more.npz", "new"), ["output data/digits (more.npz), prepare"]),
        (
            lambda made: made.write("pipeline/loop.py", "4"),
            ["dependency pipeline/loop.py, train@adt_exp-0 and 5 more", "DIFFERS"],
        ),
        (
            lambda made: (made.folder / "runs/at_pgd/seed-2/model.safetensors").unlink(),
            ["output runs/at_pgd/seed-2/model.safetensors, train@at_pgd-2", "missing", "MISSING"],
        ),
        (edit_commands, ["command train@at_pgd-0", "--fast", "DIFFERS"]),
        (
            lambda made: made.replace("params.yaml", "seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]"),
            ["stage attack@at_pgd-3", "missing", "DIFFERS"],
        ),
        (lambda made: made.write("results/comparison.json", "{"), ["results/comparison.json", "not the JSON"]),
    ],
)
def test_a_perturbed_file_parameter_or_command_is_named(
    made: Recorded, check: Check, perturb: Callable[[Recorded], None], told: list[str]
) -> None:
    perturb(made)
    status, said = check()
    assert status == 1 and lines_with(said, *told), said
    assert "verify: FAILED" in said.splitlines()[-1]


def test_a_stage_that_was_never_run_is_one_line(made: Recorded, check: Check) -> None:
    made.replace("params.yaml", "seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]")
    assert len(lines_with(check()[1], "attack@at_pgd-3")) == 1


def test_a_perturbation_is_caught_on_another_machine_too(made: Recorded, check: Check) -> None:
    made.record(torch="1.0")
    edit_verdicts(made)
    status, said = check()
    assert status == 1 and lines_with(said, "output verdicts/adt_exp/seed-1.npz", "DIFFERS")


def test_results_that_were_edited_together_with_their_lock_differ_from_the_record(made: Recorded, check: Check) -> None:
    edit_comparison(made)
    made.lock()
    status, said = check()
    assert status == 1
    assert len(lines_with(said, "output results/comparison.json", "DIFFERS")) == 1


def test_an_older_commit_can_be_the_record(made: Recorded, check: Check) -> None:
    edit_comparison(made)
    made.lock()
    made.record()
    assert check()[0] == 0
    assert check(against="HEAD~1")[0] == 1


def test_what_dvc_keeps_of_removed_cells_is_not_looked_at(made: Recorded, check: Check) -> None:
    document = parse_text((made.folder / "dvc.lock").read_text(), "")
    gone = json.loads(json.dumps(document["stages"]["train@at_pgd-0"]).replace("at_pgd", "trades"))
    document["stages"]["train@trades-0"] = gone
    made.write("dvc.lock", json.dumps(document))
    made.record()
    assert check()[0] == 0


def test_a_receipt_of_another_lock_proves_nothing(made: Recorded, check: Check) -> None:
    made.write("dvc.lock", (made.folder / "dvc.lock").read_text() + "\n")
    made.commit()
    status, said = check()
    assert status == 1 and lines_with(said, "SHA-256 of dvc.lock", "verify --record")


# Another kind of machine


def shifted(made: Recorded, points: int) -> None:
    """The same runs as another machine would make them: other checkpoints, each accuracy lower by some points."""
    made.results({(method, seed): 10 * seed + points for method in METHODS for seed in SEEDS})
    made.lock()


@pytest.mark.parametrize("name", ["torch", "scipy", "processor"])
def test_another_library_or_processor_is_named_and_moves_the_comparison_to_tolerances(
    made: Recorded, check: Check, name: str
) -> None:
    made.record(**{name: "0.1"})
    shifted(made, 1)
    status, said = check()
    assert status == 0, said
    assert lines_with(said, f"verify: {name} is ", "recorded was '0.1'")
    assert lines_with(said, "at_pgd fgsm", "-1", "within") and "another kind of machine" in said
    assert not lines_with(said, "at_pgd natural"), "what is equal is only counted"


def test_on_the_recorded_machine_the_same_results_fail(made: Recorded, check: Check) -> None:
    shifted(made, 1)
    status, said = check()
    assert status == 1
    assert lines_with(said, "output verdicts/adt_exp/seed-0.npz", "DIFFERS")
    assert lines_with(said, "adt_exp pgd-3 seed 0", "99", "98", "DIFFERS")


def test_beyond_the_tolerance_the_cell_is_named(made: Recorded, check: Check) -> None:
    """Seeds 10 points apart at 89 %: s = 10, b = 3.13, so 3 sqrt(2 (100 + 9.79) / 3) = 25.7 points."""
    made.record(torch="1.0")
    shifted(made, 25)
    assert check()[0] == 0
    shifted(made, 26)
    status, said = check()
    assert status == 1 and lines_with(said, "adt_exp worst-case", "89", "63", "-26", "25.7", "DIFFERS")


def test_elsewhere_parameters_and_data_must_still_be_the_recorded_ones(made: Recorded, check: Check) -> None:
    made.record(torch="1.0")
    made.replace("params.yaml", "epochs: 2", "epochs: 3")
    made.write("data/digits/test.npz", "other")
    made.write("pipeline/loop.py", "other")
    made.lock()
    status, said = check()
    assert status == 1
    assert lines_with(said, "parameter train.epochs, train@adt_exp-0 and 5 more", "2", "3", "DIFFERS")
    assert lines_with(said, "output data/digits", "prepare", "DIFFERS")
    assert lines_with(said, "the code differs from the recorded one: pipeline/loop.py"), "a reason, not a failure"
    assert not lines_with(said, "pipeline/loop.py", "DIFFERS")


def test_a_result_that_is_no_number_lies_within_no_tolerance(made: Recorded, check: Check) -> None:
    made.record(torch="1.0")
    made.replace("results/comparison.json", '"mean": 89.0', '"mean": NaN')
    made.lock()
    status, said = check()
    assert status == 1 and lines_with(said, "at_pgd pgd-3", "nan", "DIFFERS")


# The tolerance


def test_the_tolerance_is_three_deviations_of_the_difference_of_two_means() -> None:
    spread, binomial = 2.0, sqrt(60 * 40 / 500)
    assert tolerance(60, 2.0, 3, 500, 0.1) == pytest.approx(3 * sqrt(2 / 3) * sqrt(spread**2 + binomial**2))
    assert tolerance(60, 2.0, 12, 500, 0.1) == pytest.approx(tolerance(60, 2.0, 3, 500, 0.1) / 2)


@pytest.mark.parametrize(("std", "runs"), [(None, 2), (None, 1), (0.0, 3)])
def test_the_floor_stands_where_the_seeds_say_nothing(std: float | None, runs: int) -> None:
    assert tolerance(100.0, std, runs, 500, 5.0) == 5.0


@pytest.mark.parametrize("deviation", [0.0, 1.0, 2.0])
def test_an_honest_reproduction_is_hardly_ever_refused_and_the_spread_alone_would_refuse_one_in_ten(
    deviation: float,
) -> None:
    """Runs whose accuracy varies by `deviation` points and by images that flip at random, 3 seeds, 500 images."""
    draw = np.random.default_rng(0)
    holds = draw.beta(0.6, 0.4, size=500)  # for each image the share of models on which it holds
    runs = 100 * (draw.random((2000, 6, 500), np.float32) < holds).mean(-1) + deviation * draw.normal(size=(2000, 6))
    recorded, found = runs[:, :3], runs[:, 3:].mean(1)
    std = recorded.std(1, ddof=1)
    pairs = zip(recorded.mean(1), std, strict=True)
    allowed = np.array([tolerance(mean, s, 3, 500, 0.0) for mean, s in pairs])
    distance = np.abs(found - recorded.mean(1))
    assert (distance > allowed).mean() < 0.003
    assert 0.05 < (distance > 3 * sqrt(2 / 3) * std).mean() < 0.15


# What is said


def test_the_markdown_is_the_same_findings_as_tables(made: Recorded, check: Check, tmp_path: Path) -> None:
    edit_comparison(made)
    summary = tmp_path / "out/summary.md"
    status, said = check(markdown=summary)
    text = summary.read_text()
    assert status == 1 and text.startswith("## Reproduction: FAILED: 2 differences\n")
    assert "| output results/comparison.json, compare |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") in (5, 7) for row in rows)


def test_long_lists_are_cut_and_counted_with_failures_first() -> None:
    rows = [Row(f"cell {n}", "1", "2", "within") for n in range(100)] + [Row("bad|cell", "1", "2")]
    found = Findings("HEAD", "rule", [], [Compared("accuracies", 200, rows)])
    assert found.verdict == "FAILED: 1 difference"
    assert len(lines_with(found.text(), "cell")) == MOST and f"and {101 - MOST} more" in found.text()
    assert "| bad\\|cell | 1 | 2 |" in found.markdown()
    assert found.text().index("bad|cell") < found.text().index("cell 0")


# Running first


def test_a_rerun_comes_before_the_comparison_and_its_failure_is_a_failure(made: Recorded, check: Check) -> None:
    made.write("results/comparison.md", "edited")

    def remake() -> int:
        made.write("results/comparison.md", "a table")
        return 0

    assert check(remake=remake)[0] == 0
    assert check(remake=lambda: 255) == (1, "verify: FAILED: the run itself failed, nothing was compared\n")


def test_a_pull_that_fails_says_so_by_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pull() != 0, "there is no DVC project here"


# Misuse


@pytest.mark.parametrize(
    ("spoil", "against", "told"),
    [
        (lambda made: None, "v9", "--against v9: no such revision in this git repository"),
        (lambda made: None, "--help", "--against --help: no such revision"),
        (lambda made: made.git("rm", "--cached", "receipt.json"), "HEAD", "receipt.json: not in commit"),
        (lambda made: made.git("rm", "--cached", "dvc.lock"), "HEAD", "dvc.lock: not in commit"),
        (lambda made: made.write("receipt.json", "{}"), "HEAD", "receipt.json at HEAD: has no key 'machine'"),
        (lambda made: (made.folder / "dvc.lock").unlink(), "HEAD", "dvc.lock: no such file; nothing was made here"),
        (lambda made: (made.folder / ".git").rename(made.folder / "git"), "HEAD", "git refuses it: fatal: not a git"),
    ],
)
def test_a_record_that_is_not_there_is_a_users_error(
    made: Recorded, check: Check, spoil: Callable[[Recorded], None], against: str, told: str
) -> None:
    spoil(made)
    if (made.folder / ".git").exists() and (made.folder / "dvc.lock").exists():
        made.git("commit", "--all", "--allow-empty", "--quiet", "--message", "spoiled")
    ran: list[str] = []
    remake = None if "no such file" in told else (lambda: ran.append("") or 0)
    with pytest.raises(UserError, match=told):
        check(against=against, remake=remake)
    assert not ran, "nothing is run before the record is known to be there"


def test_the_command_ends_in_status_1_or_2(made: Recorded) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", "verify", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=made.folder, env=environment, capture_output=True, text=True)

    edit_verdicts(made)
    assert run("--markdown", "summary.md").returncode == 1
    assert (made.folder / "summary.md").read_text().startswith("## Reproduction: FAILED: 2 differences\n")
    nothing = run("--against", "v9")
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "error: --against v9: no such revision in this git repository\n",
    )
    assert run("--rerun", "--pull").returncode == 2


# dvc.lock as DVC writes it


def test_files_and_folders_are_hashed_as_dvc_hashed_them(committed: Callable[[str], bytes], tmp_path: Path) -> None:
    """The code that dvc.lock of the last commit names, taken from that commit."""
    done = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", tmp_path], input=done.stdout, check=True)
    (tmp_path / "pipeline/models/__pycache__").mkdir()
    (tmp_path / "pipeline/models/__pycache__/x.pyc").write_text("")
    stages = parse_text(committed("dvc.lock").decode(), "dvc.lock")["stages"]
    code = {item["path"]: item["md5"] for item in stages["train@at_pgd-0"]["deps"] if "pipeline" in item["path"]}
    digests = lock.Digests(tmp_path)
    assert {path: digests.of(path) for path in code} == code
    assert sum(md5.endswith(".dir") for md5 in code.values()) >= 3


def test_the_stages_are_those_that_dvc_sees() -> None:
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    defined = lock.defined(read_yaml(ROOT / "dvc.yaml"), read_yaml(ROOT / "params.yaml"))
    assert sorted(defined) == sorted(listed.split())
    assert defined["train@adt_exp-1"] == "python -m stages.train --method adt_exp --seed 1"


def test_a_dvcignore_that_is_not_understood_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / ".dvcignore").write_text("build/output\n")
    with pytest.raises(UserError, match="'build/output': only names"):
        lock.Digests(tmp_path)


def test_the_committed_receipt_belongs_to_the_committed_lock(committed: Callable[[str], bytes]) -> None:
    receipt = json.loads(committed("receipt.json"))
    assert receipt["dvc.lock"] == hashlib.sha256(committed("dvc.lock")).hexdigest()
    assert {"torch", "processor", "threads"} <= receipt["machine"].keys()
