"""A campaign: planned and packed at home, run on a node without pydantic, its results checked and put in place."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import campaign, campaign_data, campaign_plan, campaign_results, campaign_run
from pipeline import bare, params, presets
from pipeline.comparison import side_by_side
from pipeline.data import image_folder, store
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.params import Params
from pipeline.verdicts import Verdicts

ROOT = Path(__file__).parent.parent
SET = [
    "matrix.methods=[at_pgd, adt_exp]",
    "matrix.seeds=[0]",
    "train.epochs=2",
    "train.batch_size=512",
    "evaluation.attacks={pgd-3: {family: pgd, steps: 3, step_size: 0.1}, autoattack: {family: autoattack, queries: 9}}",
    "degeneracy.attacks=[pgd-3]",
    "ablation.attacks=[pgd-3]",
]
ABSENT = ("PIL", "mlflow", "optuna", "pandas", "pyautoattack", "pydantic", "requests", "ruamel", "scipy", "sklearn")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def smoke(*overrides: str) -> Params:
    return params.parse(presets.parse_text(presets.render("smoke", overrides), "test"), "test")


# The plan


def test_one_seed_of_each_method_comes_first_then_seeds_then_lambdas_then_the_wide_network() -> None:
    p = smoke("matrix.seeds=[4, 5]", "methods.adt_exp.lam=0.01")
    found = campaign_plan.parts(p, [0.0, 0.01, 1.0], True, None)
    cells = [(c["part"], c["method"], c["seed"]) for c in campaign_plan.cells(found)]
    methods = p.matrix.methods
    assert cells == [
        *(("main", method, 4) for method in methods),
        *(("main", method, 5) for method in methods),
        ("lambda-0", "adt_exp", 4),
        ("lambda-1", "adt_exp", 4),
        *(("wrn-28-10", method, 4) for method in methods),
    ]
    jobs = {part.name: part.job for part in found}
    assert jobs["lambda-1"]["methods"] == {"adt_exp": jobs["main"]["methods"]["adt_exp"] | {"lam": 1.0}}
    assert jobs["wrn-28-10"]["model"]["name"] == "wrn_28_10"
    assert jobs["main"]["left_out"] == ["autoattack"]


def test_an_attack_that_the_evaluation_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="--attacks pgd-7: not one of evaluation.attacks"):
        campaign_plan.parts(smoke(), [], False, ["pgd-7"])


# The data


def test_images_in_an_archive_travel_as_they_are_and_come_out_as_at_home(tmp_path: Path) -> None:
    archive, numbers = tmp_path / "source.tar.xz", np.random.default_rng(0)
    with tarfile.open(archive, "w:xz") as tar:
        for part, count in (("train", 6), ("test", 2)):
            for name in ("cat", "dog"):
                for number in range(count):
                    buffer = io.BytesIO()
                    pixels = numbers.integers(0, 256, (8, 8, 3), np.uint8)
                    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
                    info = tarfile.TarInfo(f"{part}/{name}/{number}.jpg")
                    info.size = len(buffer.getvalue())
                    buffer.seek(0)
                    tar.addfile(info, buffer)
    split = params.Split(validation=4, seed=0)
    settings = params.Data(name="image_folder", title="Pets", archive=str(archive), split=split)
    arrays = image_folder.load(settings, archive)
    meta = store.save(arrays, tmp_path / "home/image_folder", "image_folder", "Pets")
    campaign_data.pack(settings, arrays, meta, archive, tmp_path / "packed")
    campaign_data.unpack(tmp_path / "packed", tmp_path / "data")
    for name in ("train.npz", "validation.npz", "test.npz", "meta.json"):
        assert (tmp_path / "data/image_folder" / name).read_bytes() == (
            tmp_path / "home/image_folder" / name
        ).read_bytes()
    write_json(tmp_path / "packed/meta.json", read_json(tmp_path / "packed/meta.json") | {"sha256": "ab" * 32})
    with pytest.raises(UserError, match="have the content hash .*, at home abababab"):
        campaign_data.unpack(tmp_path / "packed", tmp_path / "other")


def test_a_pack_that_is_too_large_is_refused_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = tmp_path / "pack.tar"
    with pytest.raises(SystemExit):
        campaign.main(["pack", "--preset", "smoke", "--set", *SET, "--limit", "0.1", "--output", str(pack)])
    assert "MiB that may travel" in capsys.readouterr().err
    assert not pack.exists()


# On the node, and back


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node where the campaign ran to its end: the folder where the pack was unpacked, results beside it in out/."""
    folder = tmp_path_factory.mktemp("campaign")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        campaign.main(
            ["pack", "--preset", "smoke", "--set", *SET, "--no-wide", "--lambdas", "--output", str(folder / "pack.tar")]
        )
    (folder / "node").mkdir()
    subprocess.run(["tar", "xf", folder / "pack.tar", "-C", folder / "node"], check=True)
    for name in ABSENT:
        path = folder / "absent" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise ModuleNotFoundError('absent here: {name}', name='{name}')\n")
    done = remote(folder, "run", "--budget", "5", "--parallel", "2", "--output", str(folder / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def remote(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on the node, where the packages `ABSENT` cannot be imported."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "absent")}
    command = [sys.executable, "-m", "benchmarks.campaign", *arguments]
    return subprocess.run(command, cwd=folder / "node", env=environment, capture_output=True, text=True)


def test_all_cells_are_done_and_a_second_call_does_nothing(node: Path) -> None:
    places = campaign_run.places(node / "node/campaign")
    assert [(place.method, place.is_done(), place.epochs()) for place in places] == [
        ("at_pgd", True, 2),
        ("adt_exp", True, 2),
    ]
    again = remote(node, "run", "--budget", "5", "--parallel", "2", "--output", str(node / "again"))
    assert "begin" not in again.stdout
    assert again.stdout.count("done      2 of 2 epochs") == 2
    names = sorted(path.name for path in (node / "out").iterdir())
    assert names == ["campaign-1.tar.xz"]


def test_collected_results_are_those_of_the_node_and_can_be_compared(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign.main(["collect", str(node / "out"), "--target", str(tmp_path / "results")])
    told = capsys.readouterr().out
    assert told.startswith("smoke on digits, code ")
    assert "main adt_exp seed 0: 2 epochs" in told
    there, here = node / "node/campaign/main", tmp_path / "results/smoke/main"
    for name in ("run.json", "metrics.json", "history.csv"):
        file = f"runs/adt_exp/seed-0/{name}"
        assert (here / file).read_bytes() == (there / file).read_bytes()
    table = Verdicts.load(here / "verdicts/adt_exp/seed-0.npz")
    assert table.attacks == ["natural", "pgd-3"]
    device = read_json(here / "runs/adt_exp/seed-0/device.json")
    assert device["checkpoint_sha256"] == table.checkpoint
    assert device["training"]["machine"]["device"] == "cpu"
    text = side_by_side.chosen(smoke(*SET), [f"{here}/runs/*/*"], None, False)
    assert "at_pgd" in text and f"{device['training']['seconds']:.1f} s a run on cpu" in text


def test_the_speed_of_a_process_is_measured(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_run, "SPEED_SECONDS", 0.2)
    place = campaign_run.places(node / "node/campaign")[0]
    assert campaign_run._speed(place, 1) > 0
    assert not list(place.folder.glob("never-written"))


@pytest.mark.parametrize("speeds, best", [((9, 20, 21), 2), ((9, 9.5), 1), ((5, 10, 30), 4), ((0, 0, 0), 1)])
def test_as_many_processes_run_as_make_the_card_faster(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...], best: int
) -> None:
    measured = iter(speeds)
    monkeypatch.setattr(campaign_run.machine, "resolve", lambda name: torch.device("cuda"))
    monkeypatch.setattr(campaign_run, "_speed", lambda place, count: next(measured))
    waiting, until = campaign_run.places(node / "node/campaign"), time.monotonic() + 600
    assert campaign_run._measured(tmp_path, waiting, until) == best
    assert campaign_run._measured(tmp_path, waiting, until) == best  # kept, not measured again


def changed(source: Path, target: Path, name: str, content: bytes) -> Path:
    """The results of a node with one file replaced."""
    with tarfile.open(source) as old, tarfile.open(target, "w:xz") as new:
        for info in old:
            data = content if info.name == name else old.extractfile(info).read()  # type: ignore[union-attr]
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return target


def test_results_that_were_changed_are_refused_and_nothing_is_written(node: Path, tmp_path: Path) -> None:
    source = node / "out/campaign-1.tar.xz"
    run = "main/runs/at_pgd/seed-0"
    described = read_json(node / "node/campaign" / run / "run.json")
    described["train"]["epochs"] = 76
    accuracies = json.dumps({"natural": 1.0, "pgd-3": 1.0, "worst-case": 1.0}).encode()
    other = (node / "node/campaign/main/verdicts/adt_exp/seed-0.npz").read_bytes()
    for name, content, problem in [
        (f"{run}/run.json", json.dumps(described).encode(), "is of the cell"),
        (f"{run}/history.csv", b"epoch\n", "0 epochs"),
        ("main/verdicts/at_pgd/seed-0.npz", other, "another checkpoint"),
        ("main/verdicts/at_pgd/seed-0.json", accuracies, "does not give the accuracies"),
    ]:
        with pytest.raises(UserError, match=problem):
            campaign_results.collect(
                changed(source, tmp_path / "campaign-1.tar.xz", name, content), tmp_path / "target"
            )
    (tmp_path / "campaign-1.tar.xz").write_bytes(source.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read as results"):
        campaign_results.collect(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_files_that_no_campaign_writes_are_not_unpacked(node: Path, tmp_path: Path) -> None:
    archive = tmp_path / "campaign-1.tar.xz"
    with tarfile.open(node / "out/campaign-1.tar.xz") as old, tarfile.open(archive, "w:xz") as new:
        for info in old:
            new.addfile(info, old.extractfile(info))
        for name in ("../escaped.json", "/tmp/escaped.json", "main/runs/../../../escaped.json", "main/other.json"):
            info = tarfile.TarInfo(name)
            new.addfile(info, io.BytesIO())
    campaign_results.collect(tmp_path, tmp_path / "deep/target")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped.json", "other.json")]


# The budget


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """An unpacked plan of three cells without data."""
    job = bare.job(smoke("matrix.seeds=[0]"))
    write_json(tmp_path / "main/job.json", job)
    cells = [{"part": "main", "method": name, "seed": 0, "key": name} for name in ("at_pgd", "adt_exp", "adt_exp_am")]
    write_json(
        tmp_path / "plan.json", {"format": campaign_run.FORMAT, "preset": "smoke", "cells": cells, "attacks": {}}
    )
    return tmp_path


def test_work_stops_at_the_end_of_the_budget_and_no_process_is_left(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def sleeper(place: campaign_run.Place) -> list[str]:
        begun.append(place.method)
        return [sys.executable, "-c", "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"]

    monkeypatch.setattr(campaign_run, "LEAST", 0.0)
    started = time.monotonic()
    failed = campaign_run.run(planned, started + 1.5, 2, lambda: None, sleeper)
    assert time.monotonic() - started < 10
    assert failed == []
    assert begun == ["at_pgd", "adt_exp"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((planned / "main/pid").read_text()), 0)


def test_a_cell_that_fails_is_named_and_the_others_are_worked_on(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(place: campaign_run.Place) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('error: no memory')" if place.method == "adt_exp" else ""]

    finished: list[int] = []
    failed = campaign_run.run(planned, time.monotonic() + 60, 1, lambda: finished.append(1), command)
    assert failed == ["main adt_exp seed 0: exit status 1: error: no memory"]
    assert len(finished) == 3
    assert "end main adt_exp_am seed 0: done" in capsys.readouterr().out


def test_nothing_is_begun_that_could_not_get_anywhere(planned: Path) -> None:
    campaign_run.run(planned, time.monotonic() + 0.5, 1, lambda: None, lambda place: pytest.fail("was begun"))


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plan.json: not there; unpack the campaign"):
        campaign_run.places(tmp_path)
