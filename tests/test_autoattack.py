"""AutoAttack against the library it wraps, used as its users do, and what the wrapper promises beyond it."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pyautoattack.square import SquareAttack
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks import autoattack as benchmark
from pipeline.ascent import Ascent
from pipeline.attacks import loop
from pipeline.attacks.auto import PARTS, AutoAttack
from pipeline.attacks.auto_parts import Search, Square
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.losses import cross_entropy, margin
from pipeline.models.small import SmallCNN
from pipeline.perturbation import L2, Linf, PerturbationSet
from pipeline.seeding import Noise, Stream, seeded_globals

CPU = torch.device("cpu")
STREAM = Stream.of(0, "attack", "autoattack")
NORMS = {Linf: "Linf", L2: "L2"}


class Trained(NamedTuple):
    """A classifier of digits, and images it has not seen."""

    model: nn.Module
    test: Split


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Trained against PGD for a few epochs; frozen."""
    digits = load_digits()
    x, y = torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target)
    with seeded_globals(Stream.of(0, "test model")):
        model = SmallCNN(1, 8, 10, [16, 32], unshuffle=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adversary = Ascent(cross_entropy, Linf(0.1), steps=4, step_size=0.05)
    for epoch in range(4):
        for rows in Stream.of(0, "test order", epoch).permutation(1200).split(64):
            start = Linf(0.1).start(x[rows], Stream.of(0, "test starts", epoch).at(rows))
            images = adversary.last(model.eval(), x[rows], y[rows], start)
            sgd.zero_grad()
            cross_entropy(model.train()(images), y[rows]).mean().backward()
            sgd.step()
    return Trained(model.eval().requires_grad_(False), Split(x[1200:1500], y[1200:1500], torch.arange(1200, 1500)))


@pytest.fixture(params=[Linf(0.1), L2(0.5)], ids=["linf", "l2"])
def threat(request: pytest.FixtureRequest) -> PerturbationSet:
    """Sets in which about half of the examples hold."""
    return request.param


def some(data: Split, rows: Tensor) -> Split:
    return Split(data.x[rows], data.y[rows], data.index[rows])


def attacked(attack: AutoAttack, model: nn.Module, data: Split, threat: PerturbationSet) -> Tensor:
    return attack(model, data.x, data.y, threat, STREAM.at(data.index))


def holds(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(model(images), labels) > 0


def wider(threat: PerturbationSet, part: str) -> PerturbationSet:
    """A set in which a part breaks about half of the examples with a small budget."""
    return type(threat)((3 if part == "square" else 1.5) * threat.eps)


# The library


def test_verdicts_are_those_of_the_library_but_for_its_random_numbers(trained: Trained, threat) -> None:
    model, data = trained
    attack, norm = AutoAttack(steps=10, queries=100), NORMS[type(threat)]
    ours = holds(model, attacked(attack, model, data, threat), data.y)
    with torch.random.fork_rng():
        library = benchmark.unwrapped(model, norm, threat.eps, attack, CPU, seed=0)
        _, predicted = library.run_standard_evaluation(data.x, data.y)
    assert 0.2 < ours.float().mean() < 0.9 * holds(model, data.x, data.y).float().mean()
    assert (ours == (predicted == data.y)).float().mean() >= 0.99


class Replay(TorchFunctionMode):
    """Inside the block `torch.rand` and `torch.randn` give one example's numbers, or those of the iteration.

    Each run of Auto-PGD, which draws its start alone, has a branch of its own; Square is one run.
    """

    def __init__(self, part: str, noise: Noise) -> None:
        super().__init__()
        self.part, self.noise, self.draws = part, noise.branch(part), 0
        self.shared = torch.Generator().manual_seed(self.noise.branch(1).key & (2**63 - 1))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function not in (torch.rand, torch.randn):
            return function(*args, **(kwargs or {}))
        (shape,) = args
        if len(shape) != 4:
            return torch.rand(shape, generator=self.shared)
        first = 2 if self.part == "apgd-t" else 1
        rank, draw = (1, self.draws) if self.part == "square" else (first + self.draws, 0)
        self.draws += 1
        numbers = self.noise.branch(rank)
        return (numbers.uniform if function is torch.rand else numbers.normal)(*shape[1:], draw=draw)


@contextlib.contextmanager
def recorded(model: nn.Module, x: Tensor) -> Iterator[list[Tensor]]:
    """The images that the model is asked about inside the block, in order, without x itself."""
    seen: list[Tensor] = []

    def record(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if not torch.equal(inputs[0], x):
            seen.append(inputs[0].detach().clone())

    hook = model.register_forward_pre_hook(record)
    yield seen
    hook.remove()


def librarys_images(part: str, attack: AutoAttack, model: nn.Module, data: Split, threat: PerturbationSet) -> list:
    """What the library asks about in the runs of a part on one example, given this example's random numbers."""
    library = benchmark.unwrapped(model, NORMS[type(threat)], threat.eps, attack, CPU, seed=0)
    library.fab.targeted = True
    parts = dict(zip(PARTS, (library.apgd, library.apgd_targeted, library.fab, library.square), strict=True))
    run, seen = parts[part].attack_single_run, []

    def watched(*arguments: Any, **options: Any) -> Any:
        with recorded(model, data.x) as images:
            result = run(*arguments, **options)
        seen.extend(images)
        return result

    parts[part].attack_single_run = watched
    with torch.random.fork_rng(), Replay(part, STREAM.at(data.index)), torch.no_grad():
        parts[part].perturb(data.x, data.y)
    return seen


@pytest.mark.parametrize("part", PARTS)
def test_a_part_tries_the_images_of_the_library_given_the_same_random_numbers(
    part: str, trained: Trained, threat
) -> None:
    """One by one, until the first that breaks the example: there ours ends, and the library goes on."""
    model, threat = trained.model, wider(threat, part)
    attack, ended = AutoAttack(steps=7, queries=40, parts=(part,)), []
    for row in holds(model, trained.test.x, trained.test.y).nonzero()[:7]:
        data = some(trained.test, row)
        theirs = librarys_images(part, attack, model, data, threat)
        with recorded(model, data.x) as ours:
            image = attacked(attack, model, data, threat)
        torch.testing.assert_close(ours, theirs[: len(ours)], rtol=0, atol=1e-5)
        ended.append(not torch.equal(image, data.x))
        assert ended[-1] or len(ours) == len(theirs)
    assert any(ended) and not all(ended)


@pytest.mark.parametrize("s", range(1, 10))
def test_the_pattern_of_square_is_the_librarys_and_turned_half_of_the_time(s: int, trained: Trained) -> None:
    search = Search(trained.model, trained.test.x[:2], trained.test.y[:2], L2(0.5))
    square = Square(search, "L2", 1, STREAM.at(torch.arange(2)))
    library = SquareAttack(trained.model, norm="L2", eps=0.5, device=CPU)
    with torch.random.fork_rng():
        expected = library.eta(s)
    drawn = [square.eta(s) for _ in range(100)]
    for pattern in drawn:
        assert torch.allclose(pattern, expected) or torch.allclose(pattern.T, expected)
    if s > 1:
        assert 30 < sum(torch.equal(pattern, drawn[0]) for pattern in drawn) < 70


# What a call returns


@pytest.mark.parametrize("parts", [PARTS, *((part,) for part in PARTS)], ids=" ".join)
def test_an_image_breaks_its_example_inside_the_set_or_is_the_image_itself(
    parts: tuple[str, ...], trained: Trained, threat
) -> None:
    model, data = trained.model, trained.test.head(80)
    images = attacked(AutoAttack(8, 40, parts), model, data, threat)
    natural, held = holds(model, data.x, data.y), holds(model, images, data.y)
    assert not natural.all() and (natural & ~held).any()
    same = (images == data.x).flatten(1).all(1)
    assert torch.equal(same, ~natural | held)
    assert images.min() >= 0 and images.max() <= 1 and (threat.norm(images - data.x) <= threat.eps + 1e-6).all()


def test_it_is_the_first_image_found_that_is_returned(trained: Trained, threat) -> None:
    data, tried = trained.test.head(40), []
    hook = trained.model.register_forward_hook(lambda layer, inputs, logits: tried.append((inputs[0], logits)))
    images = attacked(AutoAttack(20, 20, ("apgd-ce",)), trained.model, data, threat)
    hook.remove()
    held = margin(tried[0][1], data.y) > 0
    expected = data.x.clone()
    for inputs, logits in reversed(tried[1:]):  # of the examples that hold at first, all in the set
        broken = margin(logits.detach(), data.y[held]) <= 0
        expected[held.nonzero()[:, 0][broken]] = inputs.detach()[broken]
    assert torch.equal(images, expected) and not torch.equal(images, data.x)


def test_the_parts_run_in_the_order_given_on_what_still_holds(trained: Trained, threat) -> None:
    model, data = trained.model, trained.test.head(60)
    square, fab = (attacked(AutoAttack(8, 40, (part,)), model, data, threat) for part in ("square", "fab-t"))
    left, right = ~holds(model, square, data.y), ~holds(model, fab, data.y)
    assert (left & right).any() and (right & ~left).any()
    for order, first, broken, second in (("square", square, left, fab), ("fab-t", fab, right, square)):
        parts = (order, *({"square", "fab-t"} - {order}))
        expected = torch.where(broken.view(-1, 1, 1, 1), first, second)
        torch.testing.assert_close(attacked(AutoAttack(8, 40, parts), model, data, threat), expected, rtol=0, atol=1e-5)


def test_a_run_ends_when_nothing_holds(trained: Trained) -> None:
    counted, data = loop.Counted(trained.model), trained.test.head(40)
    images = attacked(AutoAttack(100, 100), counted, data, Linf(0.5))
    assert not holds(trained.model, images, data.y).any()
    assert counted.gradient_evaluations < 40 * 30


# Each example for itself


@pytest.mark.parametrize("part", PARTS)
def test_neither_the_split_nor_the_order_of_a_batch_matters(part: str, trained: Trained, threat) -> None:
    model, data, threat = trained.model, trained.test.head(30), wider(threat, part)
    attack = AutoAttack(5, 40, (part,))
    together = attacked(attack, model, data, threat)
    held = holds(model, together, data.y)
    assert min(held.sum(), (together != data.x).flatten(1).any(1).sum()) > 4
    for rows in (torch.arange(30).split(13), [torch.arange(29, -1, -1)], torch.arange(8).split(1)):
        images = torch.cat([attacked(attack, model, some(data, part), threat) for part in rows])
        torch.testing.assert_close(images, together[torch.cat(list(rows))], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("untouched_random_state")
def test_global_random_states_are_neither_moved_nor_read(trained: Trained, threat) -> None:
    model, data = trained.model, trained.test.head(20)
    first = attacked(AutoAttack(5, 20), model, data, threat)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        second = attacked(AutoAttack(5, 20), model, data, threat)
    assert torch.equal(first, second)


def test_the_first_image_that_a_part_tries_is_random_but_for_fab(trained: Trained, threat) -> None:
    data, tried = trained.test.head(10), []
    hook = trained.model.register_forward_pre_hook(lambda layer, inputs: tried.append(inputs[0].detach()))
    for part in PARTS:
        firsts = []
        for key in (0, 1):
            tried.clear()
            AutoAttack(1, 1, (part,))(trained.model, data.x, data.y, threat, Stream(key).at(data.index))
            firsts.append(tried[1])  # after the images themselves
        assert torch.equal(*firsts) == (part == "fab-t")
    hook.remove()


# What it asks of the model


class Constant(nn.Module):
    """Says class 0 of any image, with logits that an image barely moves: no attack gets through."""

    def __init__(self, classes: int, slope: float = 1e-3) -> None:
        super().__init__()
        self.weight = slope * Stream.of(0, "constant").at(torch.arange(classes)).normal(36).T
        self.bias = torch.linspace(1, 0, classes)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.weight.dtype) @ self.weight + self.bias


@pytest.fixture
def all_zeros(make_examples) -> Split:
    data = make_examples(6)
    return Split(data.x, torch.zeros_like(data.y), data.index)


@pytest.mark.parametrize("classes, targets", [(4, 3), (5, 4), (10, 9), (12, 9)])
def test_the_standard_budget_is_spent_on_every_example_that_holds(classes, targets, all_zeros, threat) -> None:
    counted, n, steps, queries = loop.Counted(Constant(classes)), 6, 7, 11
    images = attacked(AutoAttack(steps, queries), counted, all_zeros, threat)
    assert torch.equal(images, all_zeros.x)
    # A run of Auto-PGD evaluates its start too; one of FAB looks at every step's image once more; so does Square.
    assert counted.gradient_evaluations == n * (steps + 1 + targets * (steps + 1) + targets * steps)
    assert counted.forward_passes == n * (1 + targets * steps + 1 + queries)


def test_square_alone_asks_for_logits_only(trained: Trained, threat) -> None:
    asked: list[bool] = []
    hook = trained.model.register_forward_pre_hook(lambda layer, inputs: asked.append(inputs[0].requires_grad))
    attacked(AutoAttack(steps=1, queries=20, parts=("square",)), trained.model, trained.test.head(20), threat)
    hook.remove()
    assert len(asked) == 22 and not any(asked)


def test_parameters_get_no_gradient_even_if_they_want_one(make_model, make_examples, threat) -> None:
    model, data = make_model().eval(), make_examples()
    attacked(AutoAttack(3, 3, ("apgd-ce", "fab-t", "square")), model, data, threat)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_model_without_gradients_is_attacked_without_a_word(all_zeros, threat, capfd, caplog) -> None:
    with caplog.at_level(logging.DEBUG):
        images = attacked(AutoAttack(5, 5), Constant(4, slope=0.0), all_zeros, threat)
    assert torch.equal(images, all_zeros.x)
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_is_asked_in_its_own_format(dtype: torch.dtype, make_model, make_examples, perturbations) -> None:
    model, data = make_model(dtype).eval(), make_examples(dtype=dtype)
    natural = holds(model, data.x, data.y)
    for part in ("apgd-ce", "fab-t", "square"):
        images = attacked(AutoAttack(10, 30, (part,)), model, data, perturbations)
        assert images.dtype == dtype and not images.requires_grad
        assert holds(model, images, data.y).sum() < natural.sum()


def test_torchs_deterministic_mode_is_as_before(make_model, make_examples, undone) -> None:
    data = make_examples()
    torch.set_deterministic_debug_mode("error")
    attacked(AutoAttack(3, 3, ("fab-t",)), make_model().eval(), data, Linf(0.5))
    assert torch.get_deterministic_debug_mode() == 2 and not torch.backends.cudnn.deterministic


@pytest.fixture
def undone() -> Iterator[None]:
    """Settings of this whole process that a test or `machine.prepare` changes."""
    mode, fills = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fills


# Where it cannot be used


@pytest.mark.parametrize("parts", [PARTS, *((part,) for part in PARTS)], ids=" ".join)
def test_an_empty_batch_is_returned_without_asking_the_model(parts: tuple[str, ...], make_examples, threat) -> None:
    data = make_examples(0)
    assert attacked(AutoAttack(3, 3, parts), nn.Bilinear(1, 1, 1), data, threat).shape == data.x.shape


def test_a_batch_that_is_misclassified_throughout_costs_one_look(all_zeros, threat) -> None:
    counted, wrong = loop.Counted(Constant(4)), Split(all_zeros.x, all_zeros.y + 1, all_zeros.index)
    assert torch.equal(attacked(AutoAttack(3, 3), counted, wrong, threat), wrong.x)
    assert (counted.forward_passes, counted.gradient_evaluations) == (6, 0)


def test_the_targeted_dlr_loss_needs_four_classes_and_the_other_parts_do_not(
    make_model, make_examples, perturbations
) -> None:
    model, data = make_model().eval(), make_examples()  # of three classes
    for parts in (PARTS, ("apgd-t",), ("square", "apgd-t")):
        with pytest.raises(UserError) as caught:
            attacked(AutoAttack(3, 3, parts), model, data, perturbations)
        message = "family autoattack: its part apgd-t needs at least 4 classes, not 3; leave it out"
        assert str(caught.value) == message
    images = attacked(AutoAttack(10, 30, ("apgd-ce", "fab-t", "square")), model, data, perturbations)
    assert holds(model, images, data.y).sum() < holds(model, data.x, data.y).sum()


class Box:
    """A user's own set."""

    eps = 0.1


def test_a_set_of_ones_own_is_refused_in_one_line(trained: Trained) -> None:
    with pytest.raises(UserError, match="^family autoattack: attacks in the sets linf and l2 alone, not in Box$"):
        attacked(AutoAttack(3, 3), trained.model, trained.test, Box())


def test_square_in_l2_refuses_images_that_its_first_pattern_does_not_fit(make_examples) -> None:
    data = make_examples()
    small = Split(data.x[:, :, :4, :4], torch.zeros_like(data.y), data.index)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(UserError, match="^family autoattack: its part square in l2 needs .* 5 pixels high, not 4$"):
        attacked(AutoAttack(3, 3, ("square",)), model, small, L2(0.5))
    attacked(AutoAttack(3, 3, ("square",)), model, small, Linf(0.5))


# The benchmark


def test_the_benchmark_times_both_sides_and_tells_how_far_they_agree(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, undone
) -> None:
    parts, output = ("apgd-ce", "square"), tmp_path / "numbers.json"
    monkeypatch.setattr(benchmark, "SELECTIONS", (parts,))
    small = {"examples": 30, "rounds": 1, "steps": 3, "queries": 10, "epochs": 1}
    benchmark.main([*(f"--{name}={value}" for name, value in small.items()), f"--output={output}"])
    numbers = json.loads(output.read_text())
    (row,) = numbers["rows"]
    assert row["parts"] == list(parts)
    assert 0 < row["times_faster"]["least"] <= row["times_faster"]["greatest"]
    assert abs(row["library"]["accuracy"] - row["ours"]["accuracy"]) <= 0.1 and row["agreement"] >= 0.8
    assert small.items() <= numbers["conditions"].items()
    assert len(capsys.readouterr().out.splitlines()) == len(numbers["conditions"]) + 2 + 1


def test_a_wrong_number_of_examples_ends_in_one_line_and_status_2(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--examples", "501"])
    assert end.value.code == 2 and capsys.readouterr().err == "error: --examples 501: from 1 to 500\n"
