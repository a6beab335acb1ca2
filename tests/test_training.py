"""The training loop: batches, schedule, selection, and resuming to the same bits."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_settings import METHODS, train_settings
from torch import Tensor, nn

from pipeline import adversaries, params, seeding
from pipeline.adversaries import Adversary, Samples
from pipeline.ascent import Inner
from pipeline.errors import UserError
from pipeline.perturbation import L2, Linf
from pipeline.seeding import Noise, Stream, seeded_globals
from pipeline.training import loop
from pipeline.training.augmentation import augment
from pipeline.training.loop import HISTORY_COLUMNS, Trainer
from pipeline.training.schedules import rate
from pipeline.training.selection import Scores, correct, validate

EPOCHS = 3
SET = Linf(0.2)


class Killed(Exception):
    """Stands for the end of a process."""


class Recorder(Adversary):
    """Returns the images as they are and remembers what it was given."""

    gradient_evaluations = 0

    def __init__(self) -> None:
        super().__init__(None, SET, 1, 6)
        self.given: list[Tensor] = []

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        self.given.append(noise.index)
        return Samples(x)


def adversary_of(method: str) -> Adversary:
    with seeded_globals(Stream.of(0, "test adversary")):
        return adversaries.build(method, METHODS[method], SET, 1, 6)


@pytest.fixture
def make_trainer(make_model, tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer with a fresh model and adversary; all of a test share the state file."""

    def make(adversary: Adversary, on_epoch=lambda history: None, fingerprint="f", seed=0, model=None, **changes):
        settings = {
            "epochs": EPOCHS,
            "batch_size": 4,
            "schedule": params.Schedule(name="cosine"),
            "selection": params.Selection(steps=2, step_size=0.1, batch_size=4),
        }
        train = train_settings(**settings | changes)
        return Trainer(model or make_model(), adversary, SET, train, seed, tmp_path / "state.pt", fingerprint, on_epoch)

    return make


@pytest.fixture
def train(make_trainer, make_examples) -> Callable[..., Trainer]:
    """Make a trainer, run it, and hand it back."""

    def train(*arguments, **changes) -> Trainer:
        trainer = make_trainer(*arguments, **changes)
        trainer.run(make_examples(10), make_examples(7, seed=1))
        return trainer

    return train


def result(trainer: Trainer) -> dict[str, Any]:
    """Everything a training run ends with."""
    weights = {f"model {k}": v for k, v in trainer.model.state_dict().items()}
    weights |= {f"adversary {k}": v for k, v in trainer.adversary.state_dict().items()}
    return weights | asdict(trainer.progress)


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    torch.testing.assert_close(result(one), result(other), rtol=0, atol=0)


def killed_after(epoch: int) -> Callable[[list], None]:
    def on_epoch(history: list) -> None:
        if len(history) == epoch:
            raise Killed

    return on_epoch


# Resuming


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(
    method: str, epoch: int, train, tmp_path
) -> None:
    with pytest.raises(Killed):
        train(adversary_of(method), on_epoch=killed_after(epoch))
    seen = []
    resumed = train(adversary_of(method), on_epoch=lambda history: seen.append(len(history)))
    assert seen == list(range(epoch + 1, EPOCHS + 1))
    (tmp_path / "state.pt").unlink()
    assert_same_bits(resumed, train(adversary_of(method)))


def test_a_kill_in_the_middle_of_an_epoch_costs_that_epoch_only(train, tmp_path) -> None:
    adversary = adversary_of("adt_exp_am")
    calls = []

    def kill(module: nn.Module, inputs: tuple) -> None:
        calls.append(1)
        if len(calls) == 5:  # the second batch of epoch 2
            raise Killed

    adversary.register_forward_pre_hook(kill)
    with pytest.raises(Killed):
        train(adversary)
    seen = []
    resumed = train(adversary_of("adt_exp_am"), on_epoch=lambda history: seen.append(len(history)))
    assert seen == [2, 3]
    (tmp_path / "state.pt").unlink()
    assert_same_bits(resumed, train(adversary_of("adt_exp_am")))


def test_a_kill_while_saving_leaves_the_state_before(train, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, []

    def kill(source, target) -> None:
        calls.append(target)
        if len(calls) == 5:  # the second batch of epoch 2; an epoch saves three times
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", kill)
        train(adversary_of("at_pgd"))
    seen = []
    resumed = train(adversary_of("at_pgd"), on_epoch=lambda history: seen.append(len(history)))
    assert seen == [2, 3]
    (tmp_path / "state.pt").unlink()
    assert_same_bits(resumed, train(adversary_of("at_pgd")))


def test_a_classifier_that_draws_from_global_random_states_resumes_too(train, make_model, tmp_path) -> None:
    def run(torch_seed: int, **changes) -> Trainer:
        before = seeding.capture()
        torch.manual_seed(torch_seed)
        try:
            model = nn.Sequential(make_model(), nn.Dropout(0.5))
            return train(adversary_of("at_pgd"), model=model, **changes)
        finally:
            seeding.restore(before)

    with pytest.raises(Killed):
        run(0, on_epoch=killed_after(1))
    resumed = run(99)
    (tmp_path / "state.pt").unlink()
    assert_same_bits(resumed, run(0))


def test_the_state_of_another_fingerprint_is_not_resumed(train, tmp_path) -> None:
    train(adversary_of("adt_exp_am"), seed=1)
    seen = []
    other = train(adversary_of("adt_exp_am"), fingerprint="g", on_epoch=lambda history: seen.append(len(history)))
    assert seen == [1, 2, 3]
    (tmp_path / "state.pt").unlink()
    assert_same_bits(other, train(adversary_of("adt_exp_am"), fingerprint="g"))


def test_a_finished_training_is_read_back_without_a_step(train) -> None:
    finished = train(adversary_of("adt_imp_am"))
    adversary = adversary_of("adt_imp_am")
    adversary.register_forward_pre_hook(lambda module, inputs: pytest.fail("a finished training took a step"))
    assert_same_bits(train(adversary), finished)


@pytest.mark.parametrize("seconds, saved", [(0, [True, True, True]), (3600, [False, False, True])])
def test_state_is_saved_no_more_often_than_asked_and_always_at_the_end(seconds, saved, train, tmp_path) -> None:
    there = []
    train(Recorder(), checkpoint_seconds=seconds, on_epoch=lambda h: there.append((tmp_path / "state.pt").exists()))
    assert there == saved


def test_seeds_give_different_trainings_and_a_seed_always_the_same(train, tmp_path) -> None:
    runs = []
    for seed in (0, 0, 1):
        (tmp_path / "state.pt").unlink(missing_ok=True)
        runs.append(train(adversary_of("at_pgd"), seed=seed))
    assert_same_bits(runs[0], runs[1])
    assert not torch.equal(runs[0].model.head.weight, runs[2].model.head.weight)


# Batches and rates


@pytest.mark.parametrize("batch_size, expected", [(4, [4, 4, 2]), (3, [3, 3, 3]), (10, [10]), (64, [10])])
def test_batches_cover_the_epoch_but_for_a_leftover_of_one(batch_size: int, expected: list[int], train) -> None:
    recorder = Recorder()
    train(recorder, batch_size=batch_size)
    assert [len(index) for index in recorder.given] == expected * EPOCHS
    for epoch in range(EPOCHS):
        visited = torch.cat(recorder.given[epoch * len(expected) : (epoch + 1) * len(expected)]).tolist()
        assert len(set(visited)) == sum(expected) and set(visited) <= set(range(10))


def test_every_epoch_has_its_own_order(train) -> None:
    recorder = Recorder()
    train(recorder, batch_size=10)
    assert len({tuple(index.tolist()) for index in recorder.given}) == EPOCHS


@pytest.mark.parametrize(
    "schedule",
    [
        params.Schedule(name="constant"),
        params.Schedule(name="cosine"),
        params.Schedule(name="one_cycle", warmup=0.3),
        params.Schedule(name="piecewise", milestones=[0.5, 0.75], factor=0.1),
    ],
    ids=lambda schedule: schedule.name,
)
def test_every_step_has_the_rate_of_its_progress(schedule, make_trainer, make_examples) -> None:
    recorder = Recorder()
    trainer = make_trainer(recorder, schedule=schedule)
    used = []
    recorder.register_forward_hook(lambda *_: used.append(trainer.optimizer.param_groups[0]["lr"]))
    history = trainer.run(make_examples(10), make_examples(4)).history
    expected = [rate(schedule, 0.1, step / (3 * EPOCHS)) for step in range(3 * EPOCHS)]
    assert used == pytest.approx(expected)
    assert [row["lr"] for row in history] == pytest.approx(expected[2::3])


@pytest.mark.parametrize("method", METHODS)
def test_history_has_a_finite_row_an_epoch_under_the_promised_columns(method: str, train) -> None:
    history = train(adversary_of(method)).progress.history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    columns = set(HISTORY_COLUMNS)
    distribution = {"entropy", "code_length", "hinge_active", "diversity"}
    columns -= {
        "adt_exp": distribution - {"entropy"},
        "adt_exp_am": {"code_length", "hinge_active"},
        "adt_imp_am": {"entropy"},
    }.get(method, distribution)
    assert all(set(row) == columns and all(map(math.isfinite, row.values())) for row in history)


def test_reported_statistics_are_means_over_the_batches(make_trainer, make_examples) -> None:
    data = make_examples(8)
    trainer = make_trainer(Recorder(), optimizer=params.Optimizer(lr=1e-12, momentum=0, weight_decay=0), epochs=1)
    (row,) = trainer.run(data, data).history
    losses, hits = [], []
    for index in trainer.adversary.given:  # the weights have not moved
        logits = trainer.model.train()(data.x[index])
        losses.append(nn.functional.cross_entropy(logits, data.y[index]).item())
        hits.append((logits.argmax(1) == data.y[index]).float().mean().item())
    assert row["train_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(sum(hits) / 2)


def test_training_learns_what_can_be_learnt(train) -> None:
    history = train(adversary_of("standard"), epochs=40).progress.history
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2


def test_a_loss_that_is_not_finite_stops_the_training(train, tmp_path) -> None:
    with pytest.raises(UserError, match="training: training diverged at epoch 1, batch 1 of 3: norm of the parameters"):
        train(adversary_of("at_pgd"), optimizer=params.Optimizer(lr=1e30, momentum=0.9, weight_decay=0))
    assert not (tmp_path / "state.pt").exists()


# Options of the loop


def test_the_average_follows_the_weights_and_is_what_is_validated_and_kept(
    make_trainer, make_examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay, steps, judged = 0.7, [], []
    trainer = make_trainer(Recorder(), ema=decay, epochs=2, batch_size=5)
    step = trainer.step

    def watched(*arguments) -> dict[str, float]:
        stats = step(*arguments)
        steps.append(trainer.model.head.weight.detach().clone())
        return stats

    monkeypatch.setattr(trainer, "step", watched)
    monkeypatch.setattr(loop, "validate", lambda model, *_: judged.append(model) or Scores(0.5, 0.5))
    progress = trainer.run(make_examples(10), make_examples(4))
    average = steps[0]
    for number, weights in enumerate(steps[1:], 2):
        average = decay * average + (1 - decay) * weights
        if number == 2:  # the end of the first epoch, whose score no later one beats
            torch.testing.assert_close(progress.selected["head.weight"], average)
    assert len(steps) == 4 and judged == [trainer.evaluated] * 2 and trainer.evaluated is not trainer.model
    torch.testing.assert_close(trainer.evaluated.head.weight.detach(), average)


def test_a_resumed_average_has_the_bits_of_an_uninterrupted_one(train, tmp_path) -> None:
    options = {"ema": 0.9, "augmentation": params.Augmentation(crop=1, padding="reflect", flip=True)}
    with pytest.raises(Killed):
        train(adversary_of("adt_exp"), on_epoch=killed_after(2), **options)
    resumed = train(adversary_of("adt_exp"), **options)
    (tmp_path / "state.pt").unlink()
    whole = train(adversary_of("adt_exp"), **options)
    assert_same_bits(resumed, whole)
    torch.testing.assert_close(resumed.average.state_dict(), whole.average.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("patience, epochs", [(0, 6), (1, 3), (2, 4), (9, 6)])
def test_training_stops_when_the_best_epoch_is_patience_epochs_back(
    patience: int, epochs: int, make_trainer, make_examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.2])
    monkeypatch.setattr(loop, "validate", lambda *_: Scores(0.9, next(scores)))
    trainer = make_trainer(Recorder(), epochs=6, patience=patience)
    progress = trainer.run(make_examples(10), make_examples(4))
    assert (len(progress.history), progress.selected_epoch) == (epochs, 2)
    again = make_trainer(Recorder(), epochs=6, patience=patience)
    assert len(again.run(make_examples(10), make_examples(4)).history) == epochs


def test_the_adversary_and_the_classifier_see_the_augmented_images(make_trainer, make_examples) -> None:
    data, given = make_examples(10), []
    adversary = Recorder()
    adversary.register_forward_hook(lambda module, inputs, samples: given.append((inputs[1], samples.x)))
    flip = params.Augmentation(crop=0, padding="zero", flip=True)
    trainer = make_trainer(adversary, augmentation=flip, epochs=1, batch_size=10)
    trainer.run(data, make_examples(4))
    ((images, samples),) = given
    order = Stream.of(0, "order", 1).permutation(10)
    expected = augment(data.x[order], flip, Stream.of(0, "augmentation", 1).at(order))
    assert torch.equal(images, expected) and samples is images and not torch.equal(images, data.x[order])


@pytest.mark.parametrize("method", ["at_pgd", "adt_exp"])
def test_batch_norm_in_training_mode_inside_the_search_uses_and_moves_batch_statistics(
    method: str, make_model, make_examples, textbook_ascent
) -> None:
    data, outcomes = make_examples(12), {}
    for mode in ("eval", "train"):
        model = make_model().eval()
        before = model.features[1].running_mean.clone()
        adversary = adversaries.build(method, METHODS[method], SET, 1, 6, Inner(batch_norm=mode))
        images = adversary(model, data.x, data.y, Stream.of(0, "test").at(data.index)).x
        assert torch.equal(model.features[1].running_mean, before) == (mode == "eval")
        assert not model.training
        outcomes[mode] = images
    assert not torch.equal(outcomes["eval"], outcomes["train"])
    if method == "at_pgd":
        start = SET.start(data.x, Stream.of(0, "test").at(data.index))
        loss = partial(nn.functional.cross_entropy, reduction="none")
        expected = textbook_ascent(make_model().train(), data.x, data.y, start, loss, SET, 4, 0.08)
        torch.testing.assert_close(outcomes["train"], expected)


# Selection


@pytest.mark.parametrize(
    "robust, natural, selected",
    [
        ([0.1, 0.5, 0.3], [0.9, 0.5, 0.9], 2),
        ([0.5, 0.5, 0.5], [0.7, 0.7, 0.7], 1),
        ([0.2, 0.5, 0.5], [0.9, 0.7, 0.7], 2),
        ([0.5, 0.5, 0.4], [0.7, 0.8, 0.9], 2),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1),
    ],
    ids=["most robust", "first of ties", "first of later ties", "natural breaks ties", "nothing right"],
)
def test_the_most_robust_then_most_natural_then_first_epoch_is_selected(
    robust: Sequence[float], natural: Sequence[float], selected: int, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [Scores(n, r) for n, r in zip(natural, robust, strict=True)]
    script, weights = iter(scores), []

    def scripted(model: nn.Module, *_) -> Scores:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(script)

    monkeypatch.setattr(loop, "validate", scripted)
    progress = train(adversary_of("at_pgd")).progress
    assert (progress.selected_epoch, progress.best) == (selected, scores[selected - 1])
    torch.testing.assert_close(dict(progress.selected), weights[selected - 1], rtol=0, atol=0)
    assert [(row["val_natural"], row["val_robust"]) for row in progress.history] == list(
        zip(natural, robust, strict=True)
    )


def test_standard_training_selects_by_natural_accuracy(train, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([Scores(0.7, 0.02), Scores(0.9, 0.0), Scores(0.9, 0.01)])
    monkeypatch.setattr(loop, "validate", lambda *_: next(script))
    assert train(adversary_of("standard")).progress.selected_epoch == 3


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.1)], ids=["linf", "l2"])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_validation_scores_of_a_linear_model_are_the_exact_ones(linear_problem, threat, batch_size: int) -> None:
    model, data, least_margins = linear_problem
    settings = params.Selection(steps=30, step_size=threat.eps / 3, batch_size=1)
    scores = validate(model, data.x, data.y, settings, threat, Stream.of(0, "validation"), batch_size)
    shares = [float((least_margins(s) > 0).double().mean()) for s in (type(threat)(0.0), threat)]
    assert [scores.natural, scores.robust] == shares
    assert 0 < scores.robust < scores.natural


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_validation_starts_belong_to_the_image_not_to_its_batch(linear_problem, batch_size: int) -> None:
    model, data, _ = linear_problem
    threat, stream = Linf(0.25), Stream.of(0, "validation")
    standing = params.Selection(steps=1, step_size=1e-12, batch_size=1)  # so that the start alone decides
    scores = validate(model, data.x, data.y, standing, threat, stream, batch_size)
    starts = threat.eps * (2 * stream.at(torch.arange(100)).uniform(1, 6, 6) - 1)
    assert scores.robust == float((model(data.x + starts).argmax(1) == data.y).double().mean())
    assert scores.robust != scores.natural


@pytest.mark.usefixtures("untouched_random_state")
def test_validation_leaves_the_model_as_it_was(make_model, make_examples) -> None:
    model, data = make_model().train(), make_examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = params.Selection(steps=2, step_size=0.1, batch_size=4)
    validate(model, data.x, data.y, settings, SET, Stream.of(0, "validation"), 4)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_scores_count_an_undecided_model_as_wrong() -> None:
    """NaN logits and ties break an example in verdicts, so they must not select a checkpoint either."""
    x, labels = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    for value in (float("nan"), 1.0):
        assert correct(lambda images, value=value: torch.full((len(images), 3), value), x, labels) == 0
