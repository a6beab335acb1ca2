"""How far the tables scale: the graph against DVC, plans against laws of scheduling, times against their formulas."""

import gc
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gpu, scale, scale_local, scale_runs, scale_steps
from benchmarks.scale_graph import COMPARISON, cell_graph
from benchmarks.scale_plan import Cluster, Plan, Rehearsal, least
from benchmarks.scale_speeds import Assumed, Measured, Step, speeds
from benchmarks.scale_times import Assumptions, Times, shared
from pipeline import graph as pipeline_graph
from pipeline import params, presets
from pipeline.data import store
from pipeline.data.store import Arrays
from pipeline.errors import UserError
from pipeline.graph import Graph
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
METHODS = ("at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am")
many = settings(max_examples=100)


@cache
def estimated(name: str) -> Times:
    """The times of a preset by its arithmetic alone."""
    return Times(presets.load(name), Assumed("a test"), Assumptions(cell=0))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# The graph


def test_the_graph_is_that_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = presets.load("cifar10-table-a")
    ours = cell_graph(p, STAGES)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    presets.use("cifar10-table-a", [], params.PARAMS_FILE)
    theirs = pipeline_graph.stage_graph()
    assert ours == theirs
    assert list(ours) == list(theirs)  # the scheduler's order


def test_the_comparison_is_what_leads_to_the_table() -> None:
    p = presets.load("cifar10-table-b")
    graph = cell_graph(p, STAGES, COMPARISON)
    cells = len(p.matrix.methods) * len(p.matrix.seeds)
    assert len(graph) == 3 * cells + 5
    assert graph["attack@adt_exp-1"] == {"prepare", "train@adt_exp-1"}
    assert graph["report"] >= {"compare", "health", "transfer"}
    assert "ablation" not in graph and all(before <= graph.keys() for before in graph.values())


def test_a_parameter_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"^dvc.yaml: \$\{data.nome\}: no such parameter$"):
        cell_graph(presets.load("smoke"), {"a": {"cmd": "a", "deps": ["data/${data.nome}"]}})


# Plans

SECONDS = st.integers(1, 20)


@st.composite
def problems(draw: st.DrawFn, most: int = 8, wide: int = 3) -> tuple[Graph, dict[str, int], dict[str, int], int]:
    """A graph, devices and seconds of its cells, and how many GPUs there are."""
    count = draw(st.integers(1, most))
    names = [f"c{number}" for number in range(count)]
    graph: Graph = {}
    for number, name in enumerate(names):
        graph[name] = set(draw(st.lists(st.sampled_from(names[:number]), max_size=2))) if number else set()
    order = draw(st.permutations(names))
    gpus = draw(st.integers(1, 4))
    devices = {name: draw(st.integers(1, min(wide, gpus))) for name in names}
    return {name: graph[name] for name in order}, devices, {name: draw(SECONDS) for name in names}, gpus


def plan(graph: Graph, devices: dict[str, int], seconds: dict[str, int], gpus: int, node: int = 8) -> Plan:
    return Rehearsal(graph, Cluster(gpus, node), devices, seconds).plan()


def longest_way(graph: Graph, seconds: dict[str, int]) -> int:
    """The critical path, by trying every way through the graph."""

    def ending_at(cell: str) -> int:
        return seconds[cell] + max((ending_at(before) for before in graph[cell]), default=0)

    return max(map(ending_at, graph))


@many
@given(problems(), st.integers(1, 4))
def test_every_cell_runs_once_after_those_before_it_and_nothing_is_given_out_twice(problem, node) -> None:
    graph, devices, seconds, gpus = problem
    devices = {cell: min(wanted, node) for cell, wanted in devices.items()}
    made = plan(graph, devices, seconds, gpus, node)
    assert made.spans.keys() == graph.keys()
    for cell, span in made.spans.items():
        assert span.end - span.begin == seconds[cell]
        assert span.devices == devices[cell]
        assert all(made.spans[before].end <= span.begin for before in graph[cell])
    for moment in {span.begin for span in made.spans.values()}:
        assert sum(s.devices for s in made.spans.values() if s.begin <= moment < s.end) <= gpus


@many
@given(problems())
def test_no_plan_beats_the_longest_way_or_the_work_shared_evenly(problem) -> None:
    graph, devices, seconds, gpus = problem
    made = plan(graph, devices, seconds, gpus)
    work = sum(seconds[cell] * devices[cell] for cell in graph)
    assert made.makespan >= max(longest_way(graph, seconds), work / gpus)
    assert least(graph, made) == max(longest_way(graph, seconds), work / gpus)
    assert made.work == work
    assert made.makespan <= sum(seconds.values())
    assert 0 <= made.idle < 1
    assert made.idle == pytest.approx((gpus * made.makespan - work) / (gpus * made.makespan))


@many
@given(problems())
def test_one_gpu_takes_the_sum_and_idles_never(problem) -> None:
    graph, devices, seconds, _ = problem
    made = plan(graph, dict.fromkeys(devices, 1), seconds, 1)
    assert made.makespan == sum(seconds.values())
    assert made.idle == 0


def optimum(graph: Graph, seconds: dict[str, int], gpus: int) -> int:
    """The shortest makespan of one-device cells: every order that the graph allows, on every choice of devices."""
    best = sum(seconds.values())

    def place(ends: dict[str, int], free: tuple[int, ...]) -> None:
        nonlocal best
        if len(ends) == len(graph):
            best = min(best, max(ends.values()))
        for cell in graph.keys() - ends.keys():
            if graph[cell] <= ends.keys():
                for number in {free.index(moment) for moment in free}:
                    end = max([free[number], *(ends[before] for before in graph[cell])]) + seconds[cell]
                    if end < best:
                        rest = (*free[:number], end, *free[number + 1 :])
                        place(ends | {cell: end}, tuple(sorted(rest)))

    place({}, (0,) * gpus)
    return best


@many
@given(problems(most=5, wide=1))
def test_one_device_cells_end_within_the_bound_of_graham(problem) -> None:
    # Graham 1969: whatever the order of the list, at most 2 - 1/m times the best there is.
    graph, devices, seconds, gpus = problem
    best = optimum(graph, seconds, gpus)
    assert best <= plan(graph, devices, seconds, gpus).makespan <= (2 - 1 / gpus) * best


def test_a_cell_of_many_gpus_has_them_in_one_node_if_a_node_is_enough() -> None:
    graph: Graph = {name: set() for name in "abcd"}
    devices = {"a": 3, "b": 3, "c": 2, "d": 1}
    made = plan(graph, devices, dict.fromkeys(graph, 10), gpus=8, node=4)
    assert {cell: span.begin for cell, span in made.spans.items()} == {"a": 0, "b": 0, "c": 10, "d": 0}
    together = plan(graph, devices, dict.fromkeys(graph, 10), gpus=8, node=8)
    assert together.spans["c"].begin == 0
    over_nodes = plan({"a": set()}, {"a": 6}, {"a": 1}, gpus=8, node=4)
    assert over_nodes.spans["a"].devices == 6


def test_a_cell_without_a_device_runs_beside_the_others_and_costs_no_gpu_hours() -> None:
    made = plan({"a": set(), "b": set()}, {"a": 1, "b": 0}, {"a": 10, "b": 10}, gpus=1)
    assert (made.makespan, made.work, made.idle) == (10, 10, 0)


# Times

SHARES = st.floats(0, 0.9)


@many
@given(st.floats(0.01, 1), SHARES, st.floats(0.5, 1), SHARES, st.floats(0, 1e9), st.integers(1, 64), st.integers(1, 8))
def test_sharing_out_never_gains_more_than_there_are_devices(one, fixed, efficiency, backward, size, devices, node):
    assumed = Assumptions(fixed=fixed, efficiency=efficiency, node=node)
    whole = assumed.step(Step(one), backward, size, 1)
    assert whole == pytest.approx(one)
    assert one / devices <= assumed.step(Step(one), backward, size, devices) * (1 + 1e-12)
    perfect = Assumptions(fixed=0, efficiency=1).step(Step(one), backward, 0, devices)
    assert perfect == pytest.approx(one / devices)
    measured = Step(one, fixed * one)  # nothing is assumed of a step that was measured at two sizes
    assert assumed.step(measured, 0, 0, devices) == pytest.approx(one * (fixed + (1 - fixed) / devices))


@many
@given(st.integers(2, 64), st.integers(1, 10**9))
def test_the_all_reduce_sends_what_a_ring_sends(devices, size) -> None:
    # A ring by hand: devices - 1 rounds of adding up and as many of passing on, a devices-th of the gradients each.
    sent = sum(size / devices for _ in range(2 * (devices - 1)))
    assumed = Assumptions(within=3e11, between=2e10, node=8)
    assert assumed.all_reduce(size, devices) == pytest.approx(sent / (3e11 if devices <= 8 else 2e10))


def test_what_fits_into_the_backward_pass_is_hidden_but_for_the_last_bucket() -> None:
    assumed = Assumptions(fixed=0, efficiency=1, within=100, bucket=10, node=8)
    assert assumed.step(Step(8.0), 1.0, 100, 2) == pytest.approx(4 + 10 / 100)  # 1 s beside 4 s
    assert assumed.step(Step(8.0), 0.125, 100, 2) == pytest.approx(4 + 1 - 0.5)
    assert assumed.step(Step(8.0), 1.0, 4, 2) == pytest.approx(4 + 4 / 100)


@pytest.mark.parametrize("name", scale.PRESETS)
def test_on_one_device_the_cells_are_what_the_preset_says_it_costs(name: str) -> None:
    times = estimated(name)
    cost, graph = times.estimate.cost(), cell_graph(times.p, STAGES)

    def hours(*kinds: str) -> float:
        return sum(times.cell(cell, 1) for cell in graph if cell.partition("@")[0] in kinds) / 3600

    assert hours("train") == pytest.approx(cost.training)
    assert hours("attack", "transfer") == pytest.approx(cost.evaluation)
    assert hours("ablation", "degeneracy", "search", "landscape") == pytest.approx(cost.studies)
    assert 0 < hours("probe") < 0.05 * cost.evaluation
    assert hours("prepare", "diversity", "claims", "health", "compare", "report") == 0


def test_an_evaluation_is_shared_out_by_whole_batches() -> None:
    assert [shared(1000, 100, devices) for devices in (1, 2, 3, 4, 20)] == [1.0, 0.5, 0.4, 0.3, 0.1]
    assert shared(0, 100, 2) == 0


def test_a_preset_of_grey_images_has_no_estimate() -> None:
    with pytest.raises(UserError, match="^digits: no estimate for .*; it is made for a CPU$"):
        Times(presets.load("digits"), Assumed("a test"), Assumptions())


# Speeds


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """A record as `benchmarks.gpu` writes it: steps of 10 ms and 1 ms an image, and PGD-100 of 2 ms an image."""

    def made(network: str = "wrn-28-10", images: dict[str, float] | None = None, batches: tuple = (64, 128)) -> Path:
        bench = gpu.Bench(None, None, 1, 0.0, {}, batches, False, (100, 200))
        for method, operations in (images or dict.fromkeys(METHODS, 1e9)).items():
            for batch in batches:
                ms, useful = 10 + batch, batch * operations
                ours = {"ms": ms, "flops_per_second": 1e3 * useful / ms}
                row = {"network": network, "method": method, "batch": batch, "useful_flops": useful}
                bench.steps.append(row | {"released": {"ms": 9 * ms}, "fp32": ours, "bf16": ours})
        bench.attacks.append({"network": network, "steps": 100, "batch": 200, "fp32": {"ms_per_image": 2.0}})
        content = gpu._content(bench, {"device": "a card"}, {"bf16": {"product": 1e15}})
        (tmp_path / "gpu.json").write_text(json.dumps(content))
        return tmp_path / "gpu.json"

    return made


def test_a_preset_that_was_measured_takes_the_measured_time(record: Callable[..., Path]) -> None:
    p = presets.load("cifar10-table-b")
    images = {method: estimated("cifar10-table-b")._image(method) for method in p.matrix.methods}
    found = speeds(p, record(images=images))
    assert found.said.startswith("measured on a card (") and "scaled" not in found.said
    times = Times(p, found, Assumptions(fixed=0.5, efficiency=0.5))
    for method in p.matrix.methods:
        assert times.step(method, 1) == pytest.approx((10 + 64) / 1000)
        # 10 ms stay, 64 of images are halved; gradients travel while images are worked on but for the last bucket.
        last = times.assumed.all_reduce(times.assumed.bucket, 2)
        assert times.step(method, 2) == pytest.approx((10 + 32) / 1000 + last)
    assert times.slower * times.estimate.attack(p.evaluation.attacks["pgd-100"]) == pytest.approx(10000 * 0.002)


def test_a_deeper_network_is_scaled_by_its_arithmetic_and_the_table_says_so(record: Callable[..., Path]) -> None:
    a, b = map(estimated, scale.PRESETS)
    images = {method: b._image(method) for method in b.p.matrix.methods}
    found = speeds(a.p, record(images=images))
    assert "wrn-28-10, scaled by the arithmetic to wrn-34-10" in found.said
    factor = a._image("adt_exp") / images["adt_exp"]
    assert factor > 1.2
    assert Times(a.p, found, Assumptions()).step("adt_exp", 1) == pytest.approx(factor * (10 + 128) / 1000)


def test_with_one_batch_size_measured_the_share_that_stays_is_assumed(record: Callable[..., Path]) -> None:
    p = presets.load("cifar10-table-b")
    found = speeds(p, record(batches=(128,)))
    assert isinstance(found, Measured)
    assert found.step(p, "adt_exp", 1e9) == Step(pytest.approx((10 + 128) / 2 / 1000), None)


@pytest.mark.parametrize("network, images", [("resnet18", None), ("wrn-28-10", {"at_pgd": 1e9})])
def test_what_was_not_measured_is_estimated_and_the_table_says_so(record: Callable[..., Path], network, images) -> None:
    found = speeds(presets.load("cifar10-table-b"), record(network, images))
    assert isinstance(found, Assumed)
    assert "does not have every method on a network like wrn-28-10" in found.said


@pytest.mark.parametrize("content", ["", "{}", '{"steps": [1], "attacks": [], "conditions": {"device": "x"}}', "[]"])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu.json").write_text(content)
    with pytest.raises(UserError, match="gpu.json: no record of benchmarks.gpu, which --output writes$"):
        speeds(presets.load("cifar10-table-b"), tmp_path / "gpu.json")


# The command


def test_the_table_says_what_it_rests_on_and_is_written_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, nothing = tmp_path / "scale.json", str(tmp_path / "gpu.json")
    arguments = ["cifar10-table-b", "--gpus", "1", "16", "--steps", nothing, "--output", str(output)]
    scale.main(arguments)
    said = capsys.readouterr().out
    assert "Step times: estimated from the arithmetic" in said
    assert "Assumed: 20 s a cell beside its arithmetic" in said
    content = json.loads(output.read_text())
    assert content["command"] == "python -m benchmarks.scale " + " ".join(arguments)
    assert content["conditions"]["torch"] and content["assumptions"]["node"] == 8
    (table,) = content["tables"]
    one, alone, best = table["rows"]
    assert one["gpus"] == 1 and 0 <= one["idle_share"] < 1e-3  # prepare, compare and report need no GPU
    assert one["makespan_hours"] == pytest.approx(one["gpu_hours"], rel=1e-3)
    assert (alone["gpus"], alone["train_devices"], alone["evaluation_devices"]) == (16, 1, 1)
    assert best["makespan_hours"] < alone["makespan_hours"] < one["makespan_hours"]
    assert best["gpu_hours"] >= alone["gpu_hours"] == pytest.approx(one["gpu_hours"])
    rows = [line for line in said.splitlines() if line.startswith("| 1")]
    assert len(rows) == 3 and f"| {best['makespan_hours']:.1f} |" in rows[2]


def test_the_devices_chosen_are_the_best_of_those_that_the_batch_allows() -> None:
    p = presets.load("cifar10-table-b")
    small = p.model_copy(update={"train": p.train.model_copy(update={"batch_size": 12})})
    table = scale.Table(small, Times(small, Assumed("a test"), Assumptions()), COMPARISON)
    *_, best = table.rows([64], [1, 2, 3, 5, 8])
    tried = [table.row(64, *pair) for pair in itertools.product((1, 2, 3), (1, 2, 3, 5, 8))]
    assert best.plan.makespan == min(row.plan.makespan for row in tried)
    assert best.train in (1, 2, 3)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nothing"], "preset 'nothing': no such preset"),
        (["digits"], "digits: no estimate for"),
        (["--gpus", "0"], "--gpus, --devices: must be at least 1"),
        (["--efficiency", "0"], "--efficiency: must be in (0, 1] (got 0)"),
        (["--fixed", "nan"], "--fixed: must be in [0, 1) (got nan)"),
        (["--measure", "--repeats", "0"], "--repeats: must be at least 1 (got 0)"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        scale.main([*arguments, "--output", str(tmp_path / "scale.json")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {complaint}")
    assert not list(tmp_path.iterdir())


# What is measured here

# Seconds of one process that has its core to itself: 4 ms of every step stay when its batch is halved.
ALONE = {f"{m} {name}": s for m in METHODS for name, s in (("whole", 0.02), ("half", 0.012), ("validation", 0.5))}
BEGIN, SLOWER = 3.0, 1.25


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything takes what it should; two processes slow each other by a quarter."""

    def copied(folder: Path) -> None:
        shutil.copytree(ROOT / "presets", folder / "presets")
        (folder / "data/digits").mkdir(parents=True)
        (folder / "data/digits/meta.json").write_text('{"counts": {"train": 640, "validation": 200}}')

    def run(cells: list[str], jobs: int) -> float:
        each = BEGIN + params.load().train.epochs * (10 * 0.02 + 0.5)  # 640 images are ten batches of 64
        return (SLOWER if jobs > 1 else 1) * each * len(cells) / jobs

    def epoch_seconds(devices: int) -> float:
        return {1: 10 * 0.02 + 0.5, 2: SLOWER * (10 * (0.004 + 0.008) + 0.5)}[devices]  # one validation batch

    slow = {name: SLOWER * seconds for name, seconds in ALONE.items()}
    monkeypatch.setattr(scale_runs, "copy_project", copied)
    monkeypatch.setattr(scale_runs, "steps", lambda processes: ALONE if processes == 1 else slow)
    monkeypatch.setattr(scale_runs, "run", run)
    monkeypatch.setattr(scale_runs, "command", lambda *command: None)
    monkeypatch.setattr(scale_runs, "epoch_seconds", epoch_seconds)
    monkeypatch.setattr(scale_local.slots, "cores", lambda: 2)


@pytest.mark.usefixtures("perfect")
def test_on_a_machine_without_surprises_predictions_have_no_error_but_the_slowdown() -> None:
    said: list[str] = []
    found = scale_local.measure(2, said.append)
    for row in found["predictions"]:
        beside = row["processes"] == 2
        assert row["slowdown"] == [pytest.approx(SLOWER if beside else 1)] * 2
        assert row["error"] == pytest.approx(1 / SLOWER - 1 if beside else 0)
        assert row["error_with_slowdown"] == pytest.approx(0)
    assert [row["processes"] for row in found["predictions"]] == [1, 2, 1, 2]
    assert said[0] == "a second process at once: every step takes 1.25 times as long; a cell takes 3.0 s to begin"
    assert "error -20.0%; with the slowdown +0.0%" in said[3] or "error -20.0%; with the slowdown -0.0%" in said[3]


def test_steps_and_validations_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presets.use("smoke", ["train.batch_size=8", "runtime.device=cpu"], tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    parts = {"train": np.arange(16), "validation": np.arange(16, 24), "test": np.arange(24, 32)}
    images = rng.integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    store.save(
        Arrays(images, np.arange(32) % 10, parts, [str(n) for n in range(10)]), Path("data/digits"), "digits", ""
    )
    (tmp_path / "go").touch()
    monkeypatch.setattr(scale_steps, "TURN", 1)
    mode = torch.get_deterministic_debug_mode()
    try:
        scale_steps.main("1", str(tmp_path))
    finally:
        torch.set_deterministic_debug_mode(mode)
        gc.unfreeze()
    seconds = json.loads(capsys.readouterr().out)
    assert seconds.keys() == ALONE.keys() and all(value > 0 for value in seconds.values())


def test_the_copy_has_the_code_and_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home/pipeline/a.py", "home/results/b.md", "home/runs/c.json", "home/dvc.lock", "home/.work/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "home/.gitignore").write_text(".work/\n")
    monkeypatch.setattr(scale_runs, "ROOT", tmp_path / "home")
    with pytest.raises(UserError, match="^--measure: needs git and the project's own repository$"):
        scale_runs.copy_project(tmp_path / "copy")
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "home")], check=True)
    scale_runs.copy_project(tmp_path / "copy")
    there = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith(".git/")} == {".gitignore", "pipeline/a.py"}
