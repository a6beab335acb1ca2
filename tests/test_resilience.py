"""Nothing that goes wrong costs a result: kills, damaged and foreign files, full disks, numbers that are not finite."""

import ast
import contextlib
import errno
import hashlib
import io
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small_settings import METHODS, train_settings
from torch import Tensor, nn

from pipeline import adversaries
from pipeline.adversaries import Samples
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.perturbation import Linf
from pipeline.seeding import Stream, seeded_globals
from pipeline.training.checkpoint import load_state
from pipeline.training.loop import Trainer
from pipeline.yaml_files import dump, read_yaml

ROOT = Path(__file__).parents[1]
KILLED = -signal.SIGKILL
BATCHES = 13  # an epoch, on the smoke preset
EPOCHS = 6
ATTACKED = "adt_exp"  # the method whose verdicts are compared, too

# Real processes

# Goes before a stage in its process, which then dies the COUNT-th time that a file called NAME is replaced: just
# BEFORE that, with half of its new content written, or just AFTER it.
DIE = """
import os, signal

def replace(source, target, original=os.replace, seen=[]):
    seen += [target] if target.name == "{name}" else []
    now = target.name == "{name}" and len(seen) == {count}
    if now and "{when}" == "before":
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
    if now:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
"""
# Goes before a stage to which the system shall refuse files of more bytes than this.
SMALL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))"


class Workspace:
    """A folder with the code, the smoke preset with more epochs, and its data; stages run there in processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"ADT_LIVE": "0", "OMP_NUM_THREADS": "1"}
        for package in ("pipeline", "stages"):
            shutil.copytree(ROOT / package, folder / package)
        self.use()
        subprocess.run([sys.executable, "-m", "stages.prepare"], cwd=folder, env=self.environment, check=True)

    def use(self, **train_or_model: Any) -> None:
        """Write params.yaml, with these values in the sections `train` and `model`."""
        document = read_yaml(ROOT / "presets/smoke.yaml")
        document["train"]["epochs"] = EPOCHS
        for key, value in train_or_model.items():
            document["train" if key in document["train"] else "model"][key] = value
        (self.folder / "params.yaml").write_text(dump(document))

    def start(self, stage: str, method: str, first: str = "") -> subprocess.Popen[str]:
        """Start a stage for this method and seed 0, as users do; if there is something to run `first`, by `runpy`."""
        script = f"{first}\nimport runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], None, '__main__', True)"
        command = [sys.executable, *(["-c", script] if first else ["-m"])]
        command += [f"stages.{stage}", "--method", method, "--seed", "0"]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **streams)

    def run(self, stage: str, method: str, status: int = 0, first: str = "") -> str:
        """What a stage that must end with `status` says on stderr."""
        process = self.start(stage, method, first)
        errors = process.communicate()[1]
        assert process.returncode == status, f"{stage} {method}: status {process.returncode}\n{errors}"
        return errors

    def begin(self, method: str) -> subprocess.Popen[str]:
        """Start a training and wait until it has saved its state once: a kill before that would cost it nothing."""
        before = self.saved()
        process = self.start("train", method)
        while process.poll() is None and self.saved() == before:
            time.sleep(0.002)
        return process

    def kill(self, method: str, seconds: float) -> None:
        """Kill a training so long after `begin`, if it is still running then."""
        process = self.begin(method)
        time.sleep(seconds)
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (0, KILLED), errors

    def unfinished(self) -> bool:
        """Whether a training has left something to continue from or to clear away."""
        return any((self.folder / ".work/train").iterdir())

    def saved(self) -> list[int]:
        """When the state of the training that is not finished was saved; empty if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return [path.stat().st_mtime_ns for path in (self.folder / ".work/train").glob("*/state.pt")]
        return []

    def results(self) -> dict[str, bytes]:
        """Every file under runs/ and verdicts/, temporary ones included."""
        files = [path for folder in ("runs", "verdicts") for path in (self.folder / folder).rglob("*")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files if path.is_file()}

    @property
    def state(self) -> Path:
        """The resumable state of the one training that is not finished."""
        (path,) = (self.folder / ".work/train").glob("*/state.pt")
        return path

    def progress(self) -> tuple[int, int]:
        """Epochs, and batches of the next one, that the resumable state has behind it."""
        fingerprint = self.state.read_bytes().split(b" ")[1].decode()
        return progress_in(self.state, fingerprint)

    def temporary(self) -> list[str]:
        """The names of files that were never finished."""
        return sorted(path.name for path in self.folder.rglob("*.tmp"))

    def clear(self) -> None:
        for folder in ("runs", "verdicts", ".work"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)


def progress_in(path: Path, fingerprint: str) -> tuple[int, int]:
    progress = load_state(path, fingerprint)["progress"]
    return len(progress["history"]), progress["batch"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("project"))


@pytest.fixture
def workspace(prepared: Workspace) -> Workspace:
    """The prepared folder, without results."""
    prepared.clear()
    prepared.use()
    return prepared


@pytest.fixture(scope="module")
def uninterrupted(prepared: Workspace) -> Callable[[str], tuple[dict[str, bytes], float]]:
    """What a method gives if nothing happens: its results, and the seconds from `begin` until its state is gone."""

    @cache
    def run(method: str) -> tuple[dict[str, bytes], float]:
        prepared.clear()
        process, started = prepared.begin(method), time.monotonic()
        while prepared.saved():
            time.sleep(0.002)
        seconds = time.monotonic() - started
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
        if method == ATTACKED:
            prepared.run("attack", method)
        results = prepared.results()
        prepared.clear()
        return results, seconds

    return run


@pytest.mark.parametrize("method", ["at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am"])
def test_killed_at_random_instants_a_method_ends_with_the_same_bits(method: str, workspace, uninterrupted) -> None:
    expected, seconds = uninterrupted(method)
    draw = random.Random(f"kills of {method}").uniform
    # Two instants of the uninterrupted training; the second process continues where the first one was killed.
    first, second = sorted([draw(0, seconds), draw(0, seconds)])
    workspace.kill(method, first)
    if workspace.unfinished():
        workspace.kill(method, second - first)
    if workspace.unfinished():
        workspace.run("train", method)
    if method == ATTACKED:
        workspace.run("attack", method, KILLED, DIE.format(name="seed-0.npz", when="before", count=1))
        workspace.run("attack", method)
    assert workspace.results() == expected, f"kills at {first} and {second} of {seconds} seconds"
    assert not workspace.unfinished()


def test_killed_after_every_attack_an_evaluation_repeats_none_and_ends_with_the_same_bits(
    workspace, uninterrupted
) -> None:
    expected, _ = uninterrupted(ATTACKED)
    workspace.run("train", ATTACKED)
    finished: dict[Path, int] = {}

    def columns() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (workspace.folder / ".work/attack").rglob("*.npz")}

    starts = 0
    while (process := workspace.start("attack", ATTACKED)).poll() is None:
        starts += 1
        while process.poll() is None and len(columns()) <= len(finished):
            time.sleep(0.001)
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (0, KILLED), errors
        assert columns().items() >= finished.items(), "an attack that was finished was made again"
        finished = columns()
        if process.returncode == 0:
            break
    assert starts > 3, "nothing was interrupted"
    assert workspace.results() == expected
    assert columns() == finished


def test_a_kill_inside_a_write_costs_no_more_than_what_was_being_written(workspace, uninterrupted) -> None:
    """One training, killed time and again, in all places where files change."""
    method, (expected, _) = "adt_imp_am", uninterrupted("adt_imp_am")

    def killed(when: str, name: str, count: int = 1) -> tuple[int, int]:
        workspace.run("train", method, KILLED, DIE.format(when=when, name=name, count=count))
        return workspace.progress()

    assert killed("before", "state.pt", 7) == (0, 6), "the batch whose state was being written is lost"
    assert workspace.temporary() != []
    assert killed("after", "state.pt") == (0, 7), "a state that is written counts"
    assert workspace.temporary() == [], "what the kill before left is gone"
    assert killed("after", "state.pt", BATCHES - 7) == (1, 0), "killed between two epochs"
    assert killed("before", "last.safetensors") == (EPOCHS, 0), "killed among the results"
    assert workspace.temporary() != []
    workspace.run("train", method)
    assert workspace.results() == expected
    assert workspace.temporary() == [] and not workspace.unfinished()


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = os.getppid()
    others = [f".file[1].{alive}.tmp", f".file1.{dead.pid}.tmp", f".file[1].more.{dead.pid}", ".file[1].mine.tmp"]
    for name in [f".file[1].{dead.pid}.tmp", *others]:
        (tmp_path / name).touch()
    write_bytes(tmp_path / "file[1]", b"content")
    assert {path.name for path in tmp_path.iterdir()} == {"file[1]", *others}


def test_a_full_disk_is_one_line_and_costs_no_more_than_a_kill(workspace, uninterrupted) -> None:
    """The system itself refuses, by its limit for the size of a file: larger than all files here but the state."""
    method, (expected, _) = "at_pgd", uninterrupted("at_pgd")
    workspace.run("train", method, KILLED, DIE.format(when="after", name="state.pt", count=BATCHES + 6))
    state = workspace.state.read_bytes()
    errors = workspace.run("train", method, 2, SMALL_DISK.format(bytes=len(state) // 2))
    path, reason = workspace.state.relative_to(workspace.folder), os.strerror(errno.EFBIG)
    assert errors == f"error: {path}: cannot be written: {reason}; the file that was there is untouched\n"
    assert workspace.state.read_bytes() == state and workspace.progress() == (1, 6)
    assert workspace.temporary() == []
    workspace.run("train", method)
    assert workspace.results() == expected


def test_a_diverging_training_is_one_line_and_status_2(workspace) -> None:
    """Weight decay alone multiplies the parameters by -500 a batch."""
    workspace.use(optimizer={"lr": 1e6, "momentum": 0.9, "weight_decay": 0.0005})
    errors = workspace.run("train", "at_pgd", 2)
    pattern = r"error: at_pgd seed 0: training diverged at epoch (\d), batch (\d+) of 13: .*(nan|inf).*\n"
    epoch, batch, _ = re.fullmatch(pattern, errors).groups()
    assert workspace.progress() == (int(epoch) - 1, int(batch) - 1), "the state before is still there"
    assert workspace.results() == {} and workspace.temporary() == []


def test_weights_of_another_architecture_are_refused_with_both_names(workspace, uninterrupted) -> None:
    trained, _ = uninterrupted("at_pgd")
    for name, content in trained.items():
        write_bytes(workspace.folder / name, content)
    workspace.use(widths=[4, 12])
    assert workspace.run("attack", "at_pgd", 2) == (
        "error: runs/at_pgd/seed-0/model.safetensors: holds small_cnn 4-8 unshuffle 2,"
        " but the model is small_cnn 4-12 unshuffle 2\n"
    )
    assert workspace.results() == trained, "there are no verdicts"


# The loop itself

SET = Linf(0.2)
FAILING = 5  # the batch in which something happens: the second of three, in the second of three epochs


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def state_path(tmp_path: Path) -> Path:
    return tmp_path / "state.pt"


@pytest.fixture
def make_trainer(make_model, state_path: Path) -> Callable[..., Trainer]:
    """A fresh trainer, and an adversary that calls `event(trainer, samples)` with those of the batch `FAILING`.

    What the event returns, if anything, takes the place of the samples.
    The trainer's `calls` hold the samples of every batch.
    """

    def make(method: str = "at_pgd", event: Callable[[Trainer, Samples], Any] = lambda *_: None) -> Trainer:
        with seeded_globals(Stream.of(0, "test adversary")):
            adversary = adversaries.build(method, METHODS[method], SET, 1, 6)
        settings = train_settings(epochs=3, batch_size=4)
        trainer = Trainer(make_model(), adversary, SET, settings, 3, state_path, "mine", name=f"{method} seed 3")
        calls = []

        def watch(_: nn.Module, inputs: tuple, samples: Samples) -> Samples | None:
            calls.append(samples)
            return event(trainer, samples) if len(calls) == FAILING else None

        adversary.register_forward_hook(watch)
        trainer.calls = calls
        return trainer

    return make


@pytest.fixture
def train(make_examples) -> Callable[[Trainer], dict[str, Any]]:
    """Run a trainer; everything that it ends with."""

    def train(trainer: Trainer) -> dict[str, Any]:
        progress = trainer.run(make_examples(10), make_examples(7, seed=1))
        weights = {"model": trainer.model.state_dict(), "adversary": trainer.adversary.state_dict()}
        return {part: dict(state) for part, state in weights.items()} | asdict(progress)

    return train


def die(*_: Any) -> None:
    raise Killed


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_code(path: Path) -> bytes:
    """A file that makes a folder if it is unpickled."""

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(path),)

    return saved({"model": Trap()})


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda state: state[: len(state) // 2], "is damaged (truncated or changed)"),
        (lambda state: state[:999] + bytes([state[999] ^ 1]) + state[1000:], "is damaged (truncated or changed)"),
        (lambda state: b"", "is not a training state of this version"),
        (lambda state: "grüße\n".encode(), "is not a training state of this version"),
        (lambda state: saved({"model": torch.ones(2)}), "is not a training state of this version"),
        (lambda state: state.split(b"\n", 1)[1], "is not a training state of this version"),
        (
            lambda state: state.replace(b" mine ", b" another ", 1),
            "belongs to a run with other parameters, data, code or machine",
        ),
    ],
    ids=["truncated", "one bit", "empty", "text", "plain torch.save", "without its first line", "another fingerprint"],
)
def test_a_state_that_cannot_be_used_is_named_and_training_starts_from_the_beginning(
    damage: Callable[[bytes], bytes], reason: str, train, make_trainer, state_path: Path, capsys
) -> None:
    with pytest.raises(Killed):
        train(make_trainer(event=die))
    state_path.write_bytes(damage(state_path.read_bytes()))
    second = make_trainer()
    result = train(second)
    assert capsys.readouterr().err == f"warning: {state_path} {reason}; training starts from the beginning\n"
    assert len(second.calls) == 9, "every batch of every epoch"
    state_path.unlink()
    assert_same_bits(result, train(make_trainer()))


def test_a_state_that_can_be_used_is_used_in_silence(train, make_trainer, state_path: Path, capsys) -> None:
    with pytest.raises(Killed):
        train(make_trainer(event=die))
    second = make_trainer()
    result = train(second)
    assert capsys.readouterr().err == ""
    assert len(second.calls) == 9 - (FAILING - 1)
    state_path.unlink()
    assert_same_bits(result, train(make_trainer()))


def test_code_in_a_state_is_never_run(train, make_trainer, state_path: Path, tmp_path: Path, capsys) -> None:
    trap, header = tmp_path / "trap", "adt-training-state-1 mine"
    content = with_code(trap)
    torch.load(io.BytesIO(content), weights_only=False)
    trap.rmdir()  # so it would work
    train(make_trainer())
    assert state_path.read_bytes().startswith(header.encode())
    state_path.write_bytes(f"{header} {hashlib.sha256(content).hexdigest()}\n".encode() + content)
    result = train(make_trainer())
    assert not trap.exists()
    assert f"{state_path} holds more than tensors and plain values; training starts" in capsys.readouterr().err
    state_path.unlink()
    assert_same_bits(result, train(make_trainer()))


def infinite_loss(trainer: Trainer, _: Samples) -> None:
    """Its gradient is that of the loss, so that the parameters stay finite."""
    adversary, loss = trainer.adversary, trainer.adversary.loss

    def more(*arguments: Any) -> tuple[Tensor, Tensor]:
        value, logits = loss(*arguments)
        return value + math.inf, logits

    adversary.loss = more


def too_fast(optimizer: str) -> Callable[[Trainer, Samples], None]:
    def event(trainer: Trainer, _: Samples) -> None:
        getattr(trainer, optimizer).param_groups[0]["lr"] = math.inf

    return event


@pytest.mark.parametrize(
    "method, event, complaint",
    [
        ("at_pgd", lambda _, samples: Samples(samples.x * math.nan), r"train_loss nan, norm of the parameters nan"),
        ("adt_exp", infinite_loss, r"train_loss inf"),
        ("adt_exp", too_fast("optimizer"), r"norm of the parameters (nan|inf)"),
        ("adt_imp_am", too_fast("adversary_optimizer"), r"norm of the parameters (nan|inf)"),
    ],
    ids=["images", "loss", "classifier", "generator"],
)
def test_what_is_not_finite_stops_the_training_and_leaves_the_last_good_state(
    method: str, event, complaint: str, train, make_trainer, state_path: Path
) -> None:
    good = []

    def fail(trainer: Trainer, samples: Samples) -> Any:
        good.append(state_path.read_bytes())
        return event(trainer, samples)

    with pytest.raises(UserError) as caught:
        train(make_trainer(method, fail))
    place = f"{method} seed 3: training diverged at epoch 2, batch 2 of 3: "
    assert re.fullmatch(re.escape(place) + complaint, str(caught.value))
    assert state_path.read_bytes() == good[0] and progress_in(state_path, "mine") == (1, 1)
    result = train(make_trainer(method))
    state_path.unlink()
    assert_same_bits(result, train(make_trainer(method)))


# No code in files


def loaders(source: str) -> list[str]:
    """The places of a module where it could run code that is in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            found += [name for name in names if name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            harmless = all(
                name.endswith("Error") or name == "Unpickler" and is_only_restricted(source) for name in names
            )
            found += [node.module] if module in UNPICKLERS and not harmless else []
            found += ["torch.load"] if module == "torch" and "load" in names else []
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            found += [called] if called == "torch.load" and options.get("weights_only") != "True" else []
            found += [called] if options.get("allow_pickle", "False") != "False" else []
    return found


def is_only_restricted(source: str) -> bool:
    """Whether `Unpickler` is nowhere used but as the base of classes that decide themselves what may be named."""
    tree = ast.parse(source)
    restricted = [
        base
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name == "find_class" for part in node.body)
        for base in node.bases
    ]
    return all(node in restricted for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Unpickler")


UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize(
    "source, found",
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("from pickle import UnpicklingError", []),
        ("from pickle import Unpickler\nUnpickler(file).load()", ["pickle"]),
        ("from pickle import Unpickler\nclass A(Unpickler):\n    pass", ["pickle"]),
        ("from pickle import Unpickler\nclass A(Unpickler):\n    def find_class(self, m, n):\n        raise E", []),
        ("from torch import load", ["torch.load"]),
        ("x = torch.load(path)", ["torch.load"]),
        ("x = torch.load(path, weights_only=False)", ["torch.load"]),
        ("x = torch.load(path, 'cpu', weights_only=True)", []),
        ("def f(): np.load(path, allow_pickle=True)", ["np.load"]),
        ("np.load(path)", []),
    ],
)
def test_loaders_that_run_code_are_found(source: str, found: list[str]) -> None:
    assert loaders(source) == found


@pytest.mark.parametrize("package", ["pipeline", "stages", "benchmarks"])
def test_no_file_is_loaded_in_a_way_that_could_run_code_in_it(package: str) -> None:
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources
    assert {str(path): found for path in sources if (found := loaders(path.read_text()))} == {}
