"""The whole pipeline on the smoke preset, in a clone of its own: what a user does, in the order a user does it."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.files import read_csv, read_json
from pipeline.report import content
from pipeline.verdicts import Verdicts
from pipeline.yaml_files import parse_text

ROOT = Path(__file__).parents[1]
METHODS = ("at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am")
CELLS = [(method, seed) for method in METHODS for seed in (0, 1)]
# What a change of one method's lambda runs again: its own cells, and what looks at all of them.
AFTER_ADT_EXP = {f"{stage}@adt_exp-{seed}" for stage in ("train", "attack", "probe") for seed in (0, 1)} | {
    "ablation",
    "compare",
    "degeneracy",
    "diversity",
    "health",
    "landscape",
    "report",
    "search",
    "transfer",
}


class Workspace:
    """A clone of the project, and commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ADT_LIVE": "0",
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str, status: int = 0) -> str:
        """Output and errors of a command that must end with `status`."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == status, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def pipeline(self, *arguments: str, status: int = 0) -> str:
        return self.run("python", "-m", "pipeline", *arguments, status=status)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", message)

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project's files as git knows them, on the smoke preset, reproduced once with two cells at a time."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    outputs = ("runs/", "verdicts/", "results/", "dvc.lock")
    for name in listed.stdout.splitlines():
        if not name.startswith(outputs) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    made = Workspace(folder)
    made.run("git", "init", "--quiet")
    made.pipeline("preset", "use", "smoke")
    made.commit("start")
    made.first_output = made.pipeline("repro", "--jobs", "2")
    made.commit("reproduced")
    return made


def test_every_promised_file_is_there_and_the_table_is_printed(workspace: Workspace) -> None:
    for method, seed in CELLS:
        run = workspace.folder / "runs" / method / f"seed-{seed}"
        assert {f.name for f in run.iterdir()} >= {
            "model.safetensors",
            "last.safetensors",
            "adversary.safetensors",
            "history.csv",
            "run.json",
            "metrics.json",
        }
        assert len(read_csv(run / "history.csv")) == 2
    comparison = (workspace.folder / "results/comparison.md").read_text()
    assert comparison in workspace.first_output
    for name, *_ in content.FIGURES:
        assert f"results/{name}" in workspace.first_output
        assert workspace.read(f"results/{name}").startswith(b"\x89PNG")
        assert b"</svg>" in workspace.read(f"results/{name.replace('.png', '.svg')}")
    for name, _ in content.TEXTS:
        assert workspace.read(f"results/{name}").startswith(b"# ")


def test_the_comparison_is_what_the_verdict_tables_say(workspace: Workspace) -> None:
    comparison = read_json(workspace.folder / "results/comparison.json")
    for method, seed in CELLS:
        table = Verdicts.load(workspace.folder / "verdicts" / method / f"seed-{seed}.npz")
        for name, value in (("natural", 1 - table.broken[0].mean()), ("worst-case", 1 - table.broken.any(0).mean())):
            run = comparison["methods"][method][name]["runs"][str(seed)]
            assert run == pytest.approx(100 * value)
            assert comparison["methods"][method][name]["std"] is None, "two seeds are too few for a deviation"


def test_the_ablation_has_every_point_and_contains_lambda_zero(workspace: Workspace) -> None:
    rows = read_csv(workspace.folder / "results/ablation/lambda.csv")
    assert [(row["method"], row["lam"], row["seed"]) for row in rows] == [
        ("at_pgd", "", "0"),
        ("adt_exp", "0", "0"),
        ("adt_exp", "1", "0"),
    ]
    assert float(rows[1]["entropy"]) < float(rows[2]["entropy"])
    assert {claim["verdict"] for claim in read_json(workspace.folder / "results/ablation/claims.json")["claims"]} == {
        "undecided"
    }


def test_the_degeneracy_study_compares_lambda_zero_with_at_pgd_and_its_twin_is_the_cell_itself(
    workspace: Workspace,
) -> None:
    rows = read_csv(workspace.folder / "results/degeneracy/accuracy.csv")
    assert [(row["method"], row["seed"]) for row in rows] == [("at_pgd", "0"), ("adt_exp", "0")]
    assert 0 <= float(rows[1]["agreement_with_at_pgd"]) <= 1 and not rows[0]["agreement_of_at_pgd_seeds"]
    cell = Verdicts.load(workspace.folder / "verdicts/at_pgd/seed-0.npz")
    held = 1 - cell.broken_by(["natural", "fgsm", "pgd-3"]).mean()
    assert float(rows[0]["worst-case"]) == pytest.approx(held, abs=1e-6)


def test_every_model_attacks_every_other(workspace: Workspace) -> None:
    rows = read_csv(workspace.folder / "results/transfer/transfer.csv")
    generators = [(method, seed) for method, seed in CELLS if method in ("adt_exp_am", "adt_imp_am")]
    assert len(rows) == len(CELLS) * (len(CELLS) + len(generators))
    own = {row["target"]: float(row["accuracy"]) for row in rows if row["source"] == row["target"] != "generator"}
    for method, seed in CELLS[:2]:
        table = Verdicts.load(workspace.folder / "verdicts" / method / f"seed-{seed}.npz")
        assert own[f"{method}-{seed}"] == pytest.approx(100 * table.accuracy("pgd-3")), "white-box on the diagonal"


def test_every_checkpoint_is_examined_and_the_comparison_says_what_was_found(workspace: Workspace) -> None:
    health = read_json(workspace.folder / "results/health.json")
    assert {(method, int(seed)) for method, runs in health["cells"].items() for seed in runs} == set(CELLS)
    assert all(
        set(verdicts) == set(health["checks"]) for runs in health["cells"].values() for verdicts in runs.values()
    )
    last = (workspace.folder / "results/comparison.md").read_text().splitlines()[-1]
    assert last.startswith("Health of the evaluation:")
    assert all(line.split(" (")[0] in last for line in health["failures"])


def test_a_shut_gate_stops_the_pipeline_where_a_check_fails(workspace: Workspace) -> None:
    """Two steps and twenty images: an attack so weak that a check of it fails."""
    health = read_json(workspace.folder / "results/health.json")
    assert health["failures"], "the smoke preset is too healthy for this test"
    before = workspace.read("params.yaml")
    (workspace.folder / "params.yaml").write_bytes(before.replace(b"gate: warn", b"gate: stop"))
    output = workspace.run("dvc", "repro", "compare", status=255)
    assert stages_run(output) == {"health"}
    assert f"health: {health['failures'][0]}" in output and "health.gate: stop in params.yaml" in output
    (workspace.folder / "params.yaml").write_bytes(before)
    assert stages_run(workspace.run("dvc", "repro", "compare")) == {"health"}
    assert "up to date" in workspace.run("dvc", "status")


def test_byte_code_is_no_dependency(workspace: Workspace) -> None:
    """It holds paths and times, so with it dvc.lock would differ from clone to clone."""
    lock = parse_text(workspace.read("dvc.lock").decode(), "dvc.lock")
    folders = [dep for stage in lock["stages"].values() for dep in stage["deps"] if dep["path"] == "pipeline/models"]
    sources = list((workspace.folder / "pipeline/models").glob("*.py"))
    assert folders and all(dep["nfiles"] == len(sources) for dep in folders)


def test_a_second_repro_does_nothing(workspace: Workspace) -> None:
    assert "up to date" in workspace.run("dvc", "repro")
    assert "done," not in workspace.pipeline("repro")


def test_one_methods_parameter_reruns_that_method_alone_and_reverting_is_served_from_the_run_cache(
    workspace: Workspace,
) -> None:
    before = workspace.read("dvc.lock")
    workspace.pipeline("preset", "use", "smoke", "--set", "methods.adt_exp.lam=0.5")
    assert "methods.adt_exp.lam" in workspace.run("dvc", "params", "diff")
    # The studies and the search set lambda themselves; they run again but find their trainings done.
    assert stages_run(workspace.run("dvc", "repro")) == AFTER_ADT_EXP
    workspace.pipeline("preset", "use", "smoke")
    # These keep some of their outputs in git instead of DVC's cache, so they alone run again, from what is in .work.
    assert stages_run(workspace.run("dvc", "repro")) == {"compare", "diversity", "health", "landscape"}
    assert workspace.read("dvc.lock") == before


def test_a_new_attack_runs_alone_on_the_stored_checkpoints(workspace: Workspace) -> None:
    columns = workspace.folder / ".work/attack"
    before = {path: path.stat().st_mtime_ns for path in columns.rglob("*.npz")}
    original = workspace.read("params.yaml")
    text = original.decode().replace("    fgsm:", "    pgd-5: {family: pgd, steps: 5, step_size: 0.1}\n    fgsm:")
    (workspace.folder / "params.yaml").write_text(text)
    workspace.run("dvc", "repro", "--single-item", "attack@at_pgd-1")
    after = {path: path.stat().st_mtime_ns for path in columns.rglob("*.npz")}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    table = Verdicts.load(workspace.folder / "verdicts/at_pgd/seed-1.npz")
    assert table.attacks[:3] == ["natural", "pgd-5", "fgsm"]
    (workspace.folder / "params.yaml").write_bytes(original)
    workspace.run("dvc", "repro", "--single-item", "attack@at_pgd-1")


def test_a_users_own_attack_and_set_work_as_the_readme_says(workspace: Workspace) -> None:
    readme = workspace.read("README.md").decode()
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    attack, threat = (next(b for b in blocks if start in b) for start in ("def random_search", "class Fading"))
    plugins = {"attacks/mine.py": attack, "sets/fading.py": threat}
    for name, code in plugins.items():
        (workspace.folder / "plugins" / name).write_text(code)
    original = workspace.read("params.yaml")
    line = '    random-5: {family: "plugins.attacks.mine:random_search", options: {draws: 5}}\n    fgsm:'
    (workspace.folder / "params.yaml").write_text(original.decode().replace("    fgsm:", line))
    columns = workspace.folder / ".work/attack"
    before = set(columns.rglob("*.npz"))
    workspace.run("dvc", "repro", "--single-item", "attack@at_pgd-1")
    assert len(set(columns.rglob("*.npz")) - before) == 1
    assert Verdicts.load(workspace.folder / "verdicts/at_pgd/seed-1.npz").attacks[1] == "random-5"
    workspace.pipeline("preset", "use", "smoke", "--set", "threat.set=plugins.sets.fading:Fading")
    workspace.run("dvc", "repro", "attack@adt_exp_am-1")
    run = read_json(workspace.folder / "runs/adt_exp_am/seed-1/run.json")
    assert run["threat"]["set"] == "plugins.sets.fading:Fading" and run["threat"]["code"]
    for name in plugins:
        (workspace.folder / "plugins" / name).unlink()
    (workspace.folder / "params.yaml").write_bytes(original)
    workspace.run("dvc", "repro", "attack@adt_exp_am-1", "attack@at_pgd-1")


def test_a_checkpoint_from_anywhere_meets_the_attacks_of_params(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = shutil.copy(workspace.folder / "runs/adt_exp/seed-0/model.safetensors", tmp_path / "old.safetensors")
    table = tmp_path / "table.npz"
    printed = workspace.pipeline("attack", "--checkpoint", elsewhere, "--attack", "pgd-3", "--output", str(table))
    own, stored = Verdicts.load(table), Verdicts.load(workspace.folder / "verdicts/adt_exp/seed-0.npz")
    assert own.attacks == ["natural", "pgd-3"] and own.checkpoint == stored.checkpoint
    assert (own.broken == stored.broken[[stored.attacks.index(name) for name in own.attacks]]).all()
    assert own.settings == [stored.settings[stored.attacks.index(name)] for name in own.attacks]
    assert [line.split()[0] for line in printed.splitlines()] == ["natural", "pgd-3", "worst-case"]


def test_dvc_exp_run_changes_one_method(workspace: Workspace) -> None:
    output = workspace.run("dvc", "exp", "run", "-S", "methods.adt_exp.lam=0.1", "attack@adt_exp-1")
    assert stages_run(output) == {"train@adt_exp-1", "attack@adt_exp-1"}
    workspace.run("git", "checkout", "--quiet", ".")
    workspace.run("dvc", "checkout", "--quiet")
    assert "up to date" in workspace.run("dvc", "status")


def test_dvc_shows_metrics_plots_and_the_graph(workspace: Workspace) -> None:
    assert "worst-case" in workspace.run("dvc", "metrics", "show")
    workspace.run("dvc", "plots", "show", "--out", "dvc_plots")
    page = workspace.read("dvc_plots/index.html").decode()
    assert "lambda.png" in page and "pareto.svg" in page and "history.csv" in page
    assert "train@adt_exp-1" in workspace.run("dvc", "dag", "--full")


def test_sequential_and_parallel_runs_give_the_same_lock(workspace: Workspace) -> None:
    before = workspace.read("dvc.lock")
    shutil.rmtree(workspace.folder / ".work")
    stages = ["train@adt_imp_am-1", "train@adt_exp-0", "ablation"]
    for stage in stages:
        assert stage in stages_run(workspace.run("dvc", "repro", "--force", "--single-item", stage))
    assert "up to date" in workspace.run("dvc", "repro")
    assert workspace.read("dvc.lock") == before


def test_mlflow_has_every_run_once(workspace: Workspace) -> None:
    # 4 methods and their 8 cells; studies of 3 and 2 trials and a search of 3; the results.
    assert "24 runs added" in workspace.first_output
    (workspace.folder / "mlflow.db").unlink()
    shutil.rmtree(workspace.folder / "mlruns")
    assert "24 runs added" in workspace.pipeline("track"), "a lost record is made again from the files"
    assert "0 runs added, 0 updated" in workspace.pipeline("track")
    client = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    child, parent = runs["adt_exp seed 1"], runs["adt_exp"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["lam"] == "0.01" and child.data.params["seed"] == "1"
    assert [m.step for m in client.get_metric_history(child.info.run_id, "val_robust")] == [1, 2]
    seeds = [runs[f"adt_exp seed {seed}"].data.metrics["test_worst-case"] for seed in (0, 1)]
    assert parent.data.metrics["test_worst-case"] == pytest.approx(sum(seeds) / 2)
    models = {model.name.rsplit("-", 1)[0]: model for model in client.search_logged_models([experiment])}
    assert set(models) == {f"{method}-seed-{seed}" for method, seed in CELLS}
    assert {m.key: m.value for m in models["adt_exp-seed-1"].metrics}["test_worst-case"] == seeds[1]
    stored = Path(models["adt_exp-seed-1"].artifact_location.removeprefix("file://"))
    assert (stored / "model.safetensors").read_bytes() == workspace.read("runs/adt_exp/seed-1/model.safetensors")
    figures = {f.path for f in client.list_artifacts(runs["results"].info.run_id)}
    assert "comparison.png" in figures


def test_a_running_training_is_seen_live_in_mlflow(workspace: Workspace) -> None:
    original = workspace.read("params.yaml")
    workspace.pipeline("preset", "use", "smoke", "--set", "train.epochs=5000")
    command = [sys.executable, "-m", "stages.train", "--method", "at_pgd", "--seed", "0"]
    environment = workspace.environment | {"ADT_LIVE": "1"}
    process = subprocess.Popen(command, cwd=workspace.folder, env=environment, stdout=subprocess.DEVNULL)
    client = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    try:
        deadline = time.monotonic() + 90
        epochs: list[int] = []
        while len(epochs) < 3:
            assert process.poll() is None and time.monotonic() < deadline, "the run did not appear while it trained"
            time.sleep(0.5)
            for run in client.search_runs([experiment], "params.epochs = '5000' and tags.`adt.kind` = 'run'"):
                epochs = [m.step for m in client.get_metric_history(run.info.run_id, "val_robust")]
                assert run.info.status == "RUNNING"
        assert epochs == sorted(set(epochs)), "every epoch is there once"
    finally:
        process.kill()
        process.wait()
        (workspace.folder / "params.yaml").write_bytes(original)
    shutil.rmtree(workspace.folder / ".work/train")


def test_mlflow_run_works_as_a_project(workspace: Workspace) -> None:
    uri = f"sqlite:///{workspace.folder / 'mlflow.db'}"
    workspace.environment["MLFLOW_TRACKING_URI"] = uri
    try:
        output = workspace.run(
            "mlflow", "run", ".", "--env-manager", "local", "-e", "train", "-P", "method=at_pgd", "-P", "seed=0"
        )
    finally:
        del workspace.environment["MLFLOW_TRACKING_URI"]
    assert "0 runs added" in output and "succeeded" in output


def test_a_fresh_clone_pulls_everything_and_completes_mlflow(workspace: Workspace, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    workspace.run("dvc", "remote", "add", "--default", "--force", "store", str(remote))
    workspace.commit("remote")
    workspace.run("dvc", "push", "--run-cache", "--quiet")
    workspace.run("git", "clone", "--quiet", str(workspace.folder), str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    output = clone.run("dvc", "repro", "--pull")
    assert not stages_run(output) - {"compare", "health"}
    assert clone.read("dvc.lock") == workspace.read("dvc.lock")
    assert "24 runs added" in clone.pipeline("track")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods.adt_exp.lamb=1", "methods.adt_exp.lamb: unknown key; allowed here: as, lam"),
        ("threat.eps=-1", "threat.eps: input should be greater than 0 (got -1)"),
        ("matrix.methods=[at_pgd, adt]", "matrix.methods.1: unknown method; there are: standard, at_fgsm"),
        ("matrix.seeds=[0, 1, 1]", "seeds must be distinct, but 1 stands there twice"),
    ],
)
def test_a_wrong_parameter_is_one_line_status_2_and_nothing_written(
    workspace: Workspace, override: str, message: str
) -> None:
    before = {path: workspace.read(path) for path in ("dvc.lock", "results/comparison.md")}
    original = workspace.read("params.yaml")
    try:
        workspace.run("python", "-c", EDIT, override)
        output = workspace.pipeline("repro", status=2)
    finally:
        (workspace.folder / "params.yaml").write_bytes(original)
    assert len(output.splitlines()) == 1 and output.startswith("error: params.yaml: ") and message in output
    assert {path: workspace.read(path) for path in before} == before


EDIT = """
import sys, pathlib
from ruamel.yaml import YAML
key, value = sys.argv[1].split("=")
yaml, path = YAML(), pathlib.Path("params.yaml")
document = yaml.load(path.read_text())
place = document
*parents, last = key.split(".")
for part in parents:
    place = place[part]
place[last] = YAML(typ="safe").load(value)
yaml.dump(document, path)
"""


def test_a_missing_data_folder_is_one_line_and_status_2(workspace: Workspace) -> None:
    data = workspace.folder / "data/digits"
    data.rename(workspace.folder / "data/elsewhere")
    try:
        command = ["python", "-m", "stages.train", "--method", "at_pgd", "--seed", "0"]
        output = workspace.run(*command, status=2)
    finally:
        (workspace.folder / "data/elsewhere").rename(data)
    assert len(output.splitlines()) == 1 and "data/digits" in output and "dvc repro prepare" in output


def test_verify_accepts_this_reproduction_and_names_what_differs(workspace: Workspace) -> None:
    workspace.pipeline("verify", "--record")
    workspace.commit("receipt")
    assert "must be equal to the byte" in workspace.pipeline("verify")
    lock = workspace.folder / "dvc.lock"
    original = lock.read_text()
    metrics = re.search(r"path: runs/at_pgd/seed-0/metrics.json\n\s+hash: md5\n\s+md5: (\w+)", original)
    lock.write_text(original.replace(metrics.group(1), "0" * 32))
    try:
        output = workspace.pipeline("verify", status=1)
    finally:
        lock.write_text(original)
    assert "runs/at_pgd/seed-0/metrics.json" in output and "FAILED" in output
