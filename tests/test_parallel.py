"""Several processes that share a training or an evaluation: the same numbers, and nobody lost in silence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shared_work
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_work import TRAININGS
from small_settings import train_settings
from torch import nn

from pipeline import params
from pipeline.errors import UserError
from pipeline.models.folding import folded
from pipeline.models.replicas import with_replicas
from pipeline.parallel import ALONE, evaluators, trainers
from pipeline.seeding import Stream
from pipeline.training.game import even

TESTS = Path(__file__).parent
CPU = torch.device("cpu")
# Runs the helper of these tests in two processes.
LAUNCH = "from pipeline.parallel.launch import launch; import sys; launch(2, 'shared_work', sys.argv[1:], 'test')"


def environment() -> dict[str, str]:
    """Where processes find the project and the helpers of its tests."""
    return os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "ADT_LIVE": "0", "OMP_NUM_THREADS": "1"}


# The same numbers


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What two processes of torchrun's made of all trainings."""
    target = tmp_path_factory.mktemp("ranks") / "found.pt"
    subprocess.run([sys.executable, "-c", LAUNCH, str(target), "cpu"], env=environment(), check=True, timeout=300)
    return torch.load(target, weights_only=False)


@pytest.fixture
def alone(double_noise: None) -> dict:
    """What one process makes of them, with the statistics of as many replicas."""
    return {name: shared_work.train(name, ALONE) for name in TRAININGS}


def test_two_processes_train_as_one_does(two_processes: dict, alone: dict) -> None:
    for name, mine in alone.items():
        theirs = two_processes["found"][name]
        assert len(mine["history"]) == shared_work.EPOCHS
        for row, other in zip(mine["history"], theirs["history"], strict=True):
            assert row == pytest.approx(other, rel=1e-7, abs=1e-9), name
        assert mine["selected"] == theirs["selected"]
        assert mine["weights"].keys() == theirs["weights"].keys()
        for key, value in mine["weights"].items():
            torch.testing.assert_close(value, theirs["weights"][key], rtol=1e-7, atol=1e-8, msg=lambda m, n=name: n + m)


def test_every_process_ends_with_the_same_weights(two_processes: dict) -> None:
    first, second = two_processes["alike"]
    assert first == second and first.keys() == TRAININGS.keys()


def test_the_verdict_table_of_two_processes_is_that_of_one_to_the_bit(two_processes: dict) -> None:
    for name, mine in shared_work.attacked().items():
        theirs = two_processes["columns"][name]
        for part in ("broken", "margin", "norm"):
            assert getattr(mine, part).tobytes() == getattr(theirs, part).tobytes(), f"{name}: {part}"
        assert (mine.gradient_evaluations, mine.forward_passes) == (theirs.gradient_evaluations, theirs.forward_passes)
    assert mine.gradient_evaluations > 0 and len(mine.margin) == 15


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_synchronised_batch_norm_train_as_one_does(tmp_path: Path) -> None:
    target = tmp_path / "found.pt"
    subprocess.run([sys.executable, "-c", LAUNCH, str(target), "cuda"], env=environment(), check=True, timeout=300)
    found = torch.load(target, weights_only=False)["found"]
    for name, result in found.items():
        mine = shared_work.train(name, ALONE, torch.device("cuda"), "synchronised")
        for row, other in zip(mine["history"], result["history"], strict=True):
            assert row == pytest.approx(other, rel=1e-6, abs=1e-8), name


# Batch norm of several replicas, and even parts


@given(parts=st.integers(1, 4), each=st.integers(2, 5), passes=st.integers(1, 3), seed=st.integers(0, 99))
def test_each_part_is_normalised_as_a_device_with_that_part_alone_would(
    parts: int, each: int, passes: int, seed: int
) -> None:
    together = with_replicas(nn.Sequential(nn.BatchNorm2d(3)), parts).double()
    devices = [nn.BatchNorm2d(3).double() for _ in range(parts)]
    weight, bias = Stream.of(seed, "scale").at(torch.arange(2)).normal(3).double()
    for norm in (together[0], *devices):
        norm.weight.data, norm.bias.data = weight.clone(), bias.clone()
    for number in range(passes):
        x = Stream.of(seed, "x", number).at(torch.arange(parts * each)).normal(3, 2, 2).double().requires_grad_()
        got, wanted = together(x), torch.cat([norm(x[n * each :][:each]) for n, norm in enumerate(devices)])
        torch.testing.assert_close(got, wanted)
        gradients = [torch.autograd.grad((y * y.detach().cos()).sum(), x)[0] for y in (got, wanted)]
        torch.testing.assert_close(*gradients)
    for name, buffer in devices[0].named_buffers():
        torch.testing.assert_close(together[0].get_buffer(name), buffer, msg="running statistics are the first part's")
    torch.testing.assert_close(together.eval()(x), devices[0].eval()(x))


def test_parts_that_are_not_even_are_refused() -> None:
    with pytest.raises(ValueError, match="5 examples cannot be shared out evenly over 2"):
        with_replicas(nn.Sequential(nn.BatchNorm2d(3)), 2)(torch.zeros(5, 3, 2, 2))


@pytest.mark.parametrize("convert", [lambda net: with_replicas(net, 2), nn.SyncBatchNorm.convert_sync_batchnorm])
def test_batch_norm_of_either_kind_is_folded_and_evaluates_as_ever(make_model, make_examples, convert) -> None:
    plain, other = make_model().eval(), convert(make_model()).eval()
    assert plain.state_dict().keys() == other.state_dict().keys()
    x = make_examples().x
    assert torch.equal(plain(x), other(x))
    view = folded(other)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm) for m in view.modules())
    assert torch.equal(folded(plain)(x), view(x))


@given(images=st.integers(2, 60), devices=st.integers(1, 4), a_device=st.integers(2, 6))
def test_batches_are_multiples_of_the_devices_and_leave_few_images_out(
    images: int, devices: int, a_device: int
) -> None:
    size = devices * a_device
    order = torch.randperm(images, generator=torch.Generator().manual_seed(images))
    batches = even(order.split(size), devices)
    used = torch.cat(list(batches))
    assert torch.equal(used, order[: len(used)])
    if images >= 2 * devices:
        assert all(len(batch) % devices == 0 and 2 * devices <= len(batch) <= size for batch in batches)
        assert images - len(used) < 2 * devices


# How many processes


@pytest.mark.parametrize(
    ("devices", "cores", "expected"), [(1, 8, 1), (2, 8, 2), (8, 8, 8), (8, 6, 4), (6, 4, 3), (7, 4, 1), (4, 1, 1)]
)
def test_as_many_processes_as_divide_the_devices_and_find_a_core(
    devices: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.slots.cores", lambda: cores)
    assert trainers(train(devices), CPU, 1) == expected
    assert trainers(train(devices, "synchronised"), CPU, 1) == 1, "one process does the same"
    assert evaluators(devices, CPU, 1) == min(devices, cores)
    assert trainers(train(devices), CPU, 2 * cores) == evaluators(devices, CPU, 2 * cores) == 1


@pytest.mark.parametrize("batch_norm", ["replica", "synchronised"])
def test_gpus_count_where_the_device_is_one(batch_norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda = torch.device("cuda")
    assert trainers(train(8, batch_norm), cuda, 16) == evaluators(8, cuda, 16) == 4


def test_torchrun_says_how_many_and_must_divide_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert trainers(train(4), CPU, 1) == 2 and evaluators(1, CPU, 1) == 2
    with pytest.raises(UserError, match=r"train.devices: is 1, which the 2 processes that torchrun has started"):
        trainers(train(1), CPU, 1)
    with pytest.raises(UserError, match=r"train.batch_norm: synchronised needs GPUs"):
        trainers(train(2, "synchronised"), CPU, 1)
    assert trainers(train(2, "synchronised"), torch.device("cuda"), 1) == 2


def train(devices: int, batch_norm: str = "replica") -> params.Train:
    return train_settings(batch_size=2 * devices, devices=devices, batch_norm=batch_norm)


def test_what_processes_cannot_share_is_refused_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.prepare"]
    together = environment() | {"WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=together, capture_output=True, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: torchrun: only stages.train and stages.attack share their work; start")


# Nobody is lost in silence


class Workspace:
    """The smoke preset with a batch of two parts, in a folder of its own; trainings run there in processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in ("pipeline", "stages", "presets"):
            (folder / package).symlink_to(TESTS.parent / package)
        changes = ["train.devices=2", "train.epochs=4", "train.stall_seconds=4"]
        overrides = [word for change in changes for word in ("--set", change)]
        self.run("-m", "pipeline", "preset", "use", "smoke", *overrides)
        self.run("-m", "stages.prepare")

    def run(self, *arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], cwd=self.folder, env=environment(), check=True)

    def start(self, *program: str) -> subprocess.Popen[str]:
        """Start the training of a cell; `program`: what comes before the stage's name."""
        command = [*program, "-m", "stages.train", "--method", "at_pgd", "--seed", "0"]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment(), **streams)

    def begun(self, process: subprocess.Popen[str], epochs: int) -> dict[int, int]:
        """Wait until so many epochs are done; then the process of each rank."""
        deadline = time.monotonic() + 60
        while self.epochs() < epochs:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        ranks = {}
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            rank = re.search(r"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_text())
            ranks[int(rank[1])] = int(child)
        return ranks

    def epochs(self) -> int:
        """Epochs that the training under way has reported."""
        histories = self.folder.glob(".work/train/*/history.csv")
        return max((len(file.read_text().splitlines()) - 1 for file in histories), default=0)

    def outputs(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / "runs/at_pgd/seed-0").iterdir()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but to be buried."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the ranks")
def test_lost_ranks_are_named_and_cost_no_more_than_the_time_since_the_last_checkpoint(workspace: Workspace) -> None:
    killed = workspace.start(sys.executable)
    ranks = workspace.begun(killed, 1)
    os.kill(ranks[1], signal.SIGKILL)
    said = killed.communicate(timeout=60)[1]
    assert killed.returncode == 1
    assert said == (
        f"error: train at_pgd seed 0: rank 1 of 2 (process {ranks[1]}) ended with signal SIGKILL;"
        " run it again to go on from the last checkpoint\n"
    )
    assert all(map(ended, ranks.values()))

    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    restarted = workspace.start(sys.executable, "-m", *torchrun)
    ranks = workspace.begun(restarted, 2)
    os.kill(ranks[1], signal.SIGSTOP)
    said = restarted.communicate(timeout=60)[1]
    assert f"error: train at_pgd seed 0: no progress for 4 s: rank 1 of 2 (process {ranks[1]} on " in said
    assert "does not answer; it was at " in said and said.count("error: train") == 1
    assert restarted.returncode == 0, said
    assert all(map(ended, ranks.values()))
    resumed = workspace.outputs()

    whole = workspace.start(sys.executable)
    assert whole.communicate(timeout=60)[1] == "" and whole.returncode == 0
    assert resumed == workspace.outputs() and "model.safetensors" in resumed
    assert not list((workspace.folder / ".work/train").iterdir())
