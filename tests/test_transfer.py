"""Transfer: images shown to other models, generators that attack models they have not seen, tables, and the stage."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_settings import METHODS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from pipeline import adversaries, cell, params
from pipeline.adversaries.amortized import Amortized
from pipeline.attacks import loop, suite
from pipeline.cell import Cell
from pipeline.data import store
from pipeline.data.sources import SOURCES
from pipeline.data.store import Split, load_split
from pipeline.errors import UserError
from pipeline.files import read_csv
from pipeline.models import architecture
from pipeline.models.weights import load_weights, save_weights
from pipeline.perturbation import Linf, PerturbationSet
from pipeline.seeding import Stream, seeded_globals
from pipeline.transfer import GENERATOR, Cross, Transfer, cell_name, markdown
from pipeline.transfer_attacks import Generated, Shown
from pipeline.verdicts import Column
from pipeline.yaml_files import read_yaml
from stages import transfer as stage

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BATCH = 4


def nudge(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise, share: float) -> Tensor:
    """A user's own attack: a random direction."""
    away = perturbations.direction(noise.normal(*x.shape[1:]).to(x.dtype))
    return (x + perturbations.project(share * perturbations.eps * away)).clamp(0, 1)


EVALUATION = params.Evaluation(
    batch_size=BATCH,
    seed=3,
    precision="fp32",
    devices=1,
    attacks={
        "pgd": params.Attack(family="pgd", steps=5, step_size=0.1),
        "mim": params.Attack(family="mim", steps=3, step_size=0.1, momentum=1.0, rule="any", restarts=2),
        "own": params.Attack(family="test_transfer:nudge", options={"share": 0.9}),
    },
)
STREAM = Stream.of(EVALUATION.seed, "attack", GENERATOR)


def shown(images: Tensor, model: nn.Module, data: Split, perturbations: PerturbationSet, batch: int = BATCH) -> Column:
    return loop.run(Shown(images, data.index), model, data, perturbations, STREAM, batch)


def wrong(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """Which images a model gets wrong, in float64."""
    with torch.no_grad():
        return (model.double().eval()(images.double()).argmax(1) != labels).numpy()


# Images shown to other models


@pytest.mark.parametrize("name", EVALUATION.attacks)
def test_what_is_shown_to_its_own_model_gives_the_white_box_column(
    name: str, perturbations, make_model, make_examples
) -> None:
    model, data = make_model(), make_examples(30)
    images = suite.images(name, EVALUATION, model, data, perturbations)
    column, again = (
        suite.column(name, EVALUATION, model, data, perturbations),
        shown(images, model, data, perturbations),
    )
    for part in ("broken", "margin", "norm"):
        assert np.array_equal(getattr(column, part), getattr(again, part))
    assert again.gradient_evaluations == 0


def test_the_images_are_those_of_the_textbook_attack_on_the_source(
    perturbations, make_model, make_examples, textbook_ascent
) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    start = perturbations.start(data.x, Stream.of(3, "attack", "pgd").at(data.index)).double()
    loss = lambda logits, labels: cross_entropy(logits, labels, reduction="none")  # noqa: E731
    expected = textbook_ascent(model, data.x, data.y, start, loss, perturbations, 5, 0.1)
    images = suite.images("pgd", EVALUATION, model, data, perturbations)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-9)


def test_another_model_is_judged_on_the_images_of_the_source(perturbations, make_model, make_examples) -> None:
    source, target, data = make_model(seed=0), make_model(seed=1), make_examples(60)
    images = suite.images("pgd", EVALUATION, source, data, perturbations)
    column = shown(images, target, data, perturbations)
    assert np.array_equal(column.broken, wrong(target, images, data.y) | wrong(target, data.x, data.y))
    assert not np.array_equal(column.broken, suite.column("pgd", EVALUATION, source, data, perturbations).broken)


def test_images_that_help_the_target_mend_nothing(perturbations, make_model, make_examples, textbook_ascent) -> None:
    model, data = make_model().eval(), make_examples(60)
    help_it = lambda logits, labels: -cross_entropy(logits, labels, reduction="none")  # noqa: E731
    images = textbook_ascent(model, data.x, data.y, torch.zeros_like(data.x), help_it, perturbations, 8, 0.1)
    column = shown(images.detach(), model, data, perturbations)
    natural, after = wrong(model, data.x, data.y), wrong(model, images.detach(), data.y)
    assert (natural & ~after).any()
    assert np.array_equal(column.broken, natural | after)


def test_an_image_belongs_to_its_example_whatever_the_order(perturbations, make_model, make_examples) -> None:
    data = make_examples(30)
    images = suite.images("own", EVALUATION, make_model(), data, perturbations)
    order = torch.from_numpy(np.random.default_rng(0).permutation(30))
    mixed = Shown(images, data.index)(
        make_model(), data.x[order], data.y[order], perturbations, STREAM.at(data.index[order])
    )
    assert torch.equal(mixed, images[order])


# Generators


@pytest.fixture
def classes() -> int:
    return 4


@pytest.fixture(params=["adt_exp_am", "adt_imp_am"])
def adversary(request: pytest.FixtureRequest, perturbations: PerturbationSet) -> Amortized:
    """A generator whose samples differ and reach far, in training mode; its batch norms have seen something."""
    with seeded_globals(Stream.of(0, "test generator")):
        made = adversaries.build(request.param, METHODS[request.param], perturbations, 1, 6)
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.0)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.4)
    return made.train()


def attacked(adversary: Amortized, draws: int, model: nn.Module, data: Split, batch: int = 100) -> Column:
    return loop.run(Generated(adversary, draws, 16), model, data, adversary.perturbations, STREAM, batch)


def sample_by_hand(adversary: Amortized, model: nn.Module, data: Split, draw: int) -> Tensor:
    """Sample number `draw` of every image, from the formulas: gradient channels, generator, squash, clip."""

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(model(x), data.y, reduction="sum"), x)[0]

    p, generator, noise = adversary.perturbations, adversary.generator, STREAM.at(data.index).branch(draw)
    first = gradient(data.x)
    step = first.sign() if isinstance(p, Linf) else first / first.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    second = gradient((data.x + p.eps * step).clamp(0, 1))
    maps = torch.cat([data.x, first.sign(), second.sign()], 1)
    if hasattr(adversary, "encoder"):
        u = generator(maps, 2 * noise.uniform(1, 5)[:, 0] - 1)
    else:
        mean, rho = generator(maps).chunk(2, 1)
        u = mean + softplus(rho) * noise.normal(1, 1, 6, 6)[:, 0]
    length = u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta = p.eps * (u.tanh() if isinstance(p, Linf) else (length / 6).tanh() * u / length)
    return (data.x + delta).clamp(0, 1)


def test_an_example_is_broken_by_any_of_its_samples(adversary, make_model, make_examples) -> None:
    model, data, draws = make_model(seed=1).eval(), make_examples(60), 5
    column = attacked(adversary, draws, model, data)
    adversary.eval()
    verdicts = [wrong(make_model(seed=1), sample_by_hand(adversary, model, data, d), data.y) for d in range(draws)]
    expected = np.any([*verdicts, wrong(make_model(seed=1), data.x, data.y)], axis=0)
    assert np.array_equal(column.broken, expected)
    assert not all(np.array_equal(verdicts[0], other) for other in verdicts)


def test_more_samples_only_ever_break_more(adversary, make_model, make_examples) -> None:
    model, data = make_model(seed=1), make_examples(60)
    broken = [attacked(adversary, draws, model, data).broken for draws in (1, 3, 12)]
    assert not (broken[0] & ~broken[1]).any() and not (broken[1] & ~broken[2]).any()
    assert broken[0].sum() < broken[2].sum()


def test_every_draw_is_new_and_only_examples_that_hold_draw_again(
    adversary, make_model, make_examples, monkeypatch
) -> None:
    drawn, perturb = [], adversary.perturb
    monkeypatch.setattr(adversary, "perturb", lambda *arguments: drawn.append(perturb(*arguments)) or drawn[-1])
    model, data = make_model(seed=1), make_examples(60)
    attacked(adversary, 4, model, data)
    counts = [len(delta) for delta, _, _ in drawn]
    assert counts[0] == 60 and counts == sorted(counts, reverse=True) and counts[1] < 60
    drawn.clear()
    for draws in (1, 2):
        Generated(adversary, draws, 16)(
            make_model().eval(), data.x[:1], data.y[:1], adversary.perturbations, STREAM.at(data.index[:1])
        )
    first, again, *second = (delta for delta, _, _ in drawn)
    assert torch.equal(first, again) and all((delta - first).abs().max() > 1e-3 for delta in second)


@pytest.mark.usefixtures("untouched_random_state")
@pytest.mark.parametrize("training", [True, False])
def test_the_generator_evaluates_and_is_left_as_it_was(
    adversary, make_model, make_examples, training: bool, monkeypatch
) -> None:
    adversary.train(training)
    modes, forward = [], type(adversary.generator).forward
    monkeypatch.setattr(
        type(adversary.generator), "forward", lambda g, *maps: modes.append(g.training) or forward(g, *maps)
    )
    before = {name: value.clone() for name, value in adversary.state_dict().items()}
    attacked(adversary, 2, make_model(), make_examples())
    assert not any(modes) and len(modes) == 2
    assert all(module.training == training for module in adversary.modules())
    torch.testing.assert_close(dict(adversary.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in adversary.parameters())


@pytest.mark.parametrize("mode", ["sign", "raw", "normalized"])
def test_samples_do_not_depend_on_the_batch(adversary, make_model, make_examples, mode: str) -> None:
    adversary.settings = adversary.settings.model_copy(update={"gradient_input": mode})
    model, data = make_model(seed=1), make_examples(30)
    columns = [attacked(adversary, 3, model, data, batch) for batch in (1, 7, 30)]
    for column in columns[1:]:
        assert np.array_equal(column.broken, columns[0].broken)
        np.testing.assert_allclose(column.margin, columns[0].margin, rtol=0, atol=1e-4)


def test_raw_gradients_come_on_the_scale_of_the_training_batch(
    adversary, make_model, make_examples, monkeypatch
) -> None:
    adversary.settings = adversary.settings.model_copy(update={"gradient_input": "raw"})
    seen, perturb = [], adversary.perturb
    monkeypatch.setattr(adversary, "perturb", lambda maps, *rest: seen.append(maps) or perturb(maps, *rest))
    model, data = make_model().eval(), make_examples(10)
    attacked(adversary, 1, model, data)
    x = data.x.clone().requires_grad_()
    gradient = torch.autograd.grad(cross_entropy(model(x), data.y, reduction="sum"), x)[0] / 16
    torch.testing.assert_close(seen[0][:, 1:2], gradient)
    assert torch.equal(seen[0][:, :1], data.x)


def test_a_generator_does_nothing_on_an_empty_batch(adversary, make_model, make_examples) -> None:
    data = make_examples(0)
    images = Generated(adversary, 2, 16)(
        make_model().eval(), data.x, data.y, adversary.perturbations, STREAM.at(data.index)
    )
    assert images.shape == data.x.shape


# Tables

CELLS = ["at_pgd-0", "at_pgd-3", "adt_exp_am-0", "adt_exp_am-3"]


def random_table(count: int = 20) -> Transfer:
    """Two attacks of four models, and the generators of two."""
    rows = np.random.default_rng(0).random((3, 4, 4, count)) < 0.4
    found = {
        (attack, source): rows[a, s]
        for s, source in enumerate(CELLS)
        for a, attack in enumerate(["pgd", "mim", GENERATOR])
        if attack != GENERATOR or source.startswith("adt")
    }
    return Transfer.join(found, CELLS, np.arange(count) % 4, 100 + np.arange(count))


@pytest.fixture
def table() -> Transfer:
    return random_table()


def test_a_table_is_read_back_as_it_was_written(table: Transfer, tmp_path: Path) -> None:
    for path in (tmp_path / "one.npz", tmp_path / "two.npz"):
        table.save(path)
    again = Transfer.load(tmp_path / "one.npz")
    for field in dataclasses.fields(Transfer):
        one, other = getattr(table, field.name), getattr(again, field.name)
        assert np.array_equal(one, other) and type(one) is type(other)
    assert again.broken.dtype == again.made.dtype == bool
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_what_does_not_exist_is_marked_and_has_no_accuracy(table: Transfer) -> None:
    assert table.attacks == ["pgd", "mim", GENERATOR] and table.sources == table.targets == CELLS
    assert table.made.tolist() == [[True] * 4, [True] * 4, [False, False, True, True]]
    assert np.array_equal(np.isnan(table.accuracies()).all(2), ~table.made)
    assert not table.broken[2, :2].any()


def test_the_rows_are_the_accuracies_of_the_targets(table: Transfer) -> None:
    rows = table.rows()
    assert len(rows) == (4 + 4 + 2) * 4
    for row in rows:
        a, s, t = table.attacks.index(row["attack"]), CELLS.index(row["source"]), CELLS.index(row["target"])
        holding = sum(not hit for hit in table.broken[a, s, t])
        assert row["accuracy"] == pytest.approx(100 * holding / 20)


def test_means_over_seeds_keep_white_box_apart(table: Transfer) -> None:
    value = {(r["source"], r["target"]): r["accuracy"] for r in table.rows() if r["attack"] == "mim"}
    crosses = table.crosses("mim")
    assert list(crosses) == list(crosses["at_pgd"]) == ["at_pgd", "adt_exp_am"]
    across = [value[f"at_pgd-{s}", f"adt_exp_am-{t}"] for s in (0, 3) for t in (0, 3)]
    assert crosses["at_pgd"]["adt_exp_am"] == Cross(pytest.approx(sum(across) / 4), 4, None, 0)
    others = (value["at_pgd-0", "at_pgd-3"] + value["at_pgd-3", "at_pgd-0"]) / 2
    own = (value["at_pgd-0", "at_pgd-0"] + value["at_pgd-3", "at_pgd-3"]) / 2
    assert crosses["at_pgd"]["at_pgd"] == Cross(pytest.approx(others), 2, pytest.approx(own), 2)
    assert list(table.crosses(GENERATOR)) == ["adt_exp_am"]


def test_the_markdown_shows_every_mean_with_its_number_of_pairs(table: Transfer) -> None:
    text = markdown(table, "# Heading")
    assert text.startswith("# Heading\n\nAccuracy in % of the column's models on 20 test images")
    sections = dict(section.split("\n", 1) for section in text.split("\n### ")[1:])
    assert list(sections) == table.attacks
    cross = table.crosses("pgd")["at_pgd"]
    same, other = cross["at_pgd"], cross["adt_exp_am"]
    row = f"| at_pgd | {same.mean:.1f} (2), own {same.own:.1f} (2) | {other.mean:.1f} (4) |"
    assert row in sections["pgd"].splitlines()
    assert "| at_pgd |" not in sections[GENERATOR].replace("| made with | at_pgd |", "")


def test_a_single_model_has_only_itself() -> None:
    broken = np.array([[True, False, False, False]])
    table = Transfer.join({("pgd", "at_pgd-0"): broken}, ["at_pgd-0"], np.zeros(4, int), np.arange(4))
    assert table.crosses("pgd") == {"at_pgd": {"at_pgd": Cross(None, 0, 75.0, 1)}}
    assert "| at_pgd | own 75.0 (1) |" in markdown(table, "#").splitlines()
    assert not table.broken_by_others("at_pgd-0").any()


@pytest.mark.parametrize("target", CELLS)
def test_what_others_break_leaves_out_the_model_itself_and_the_generators(table: Transfer, target: str) -> None:
    t = CELLS.index(target)
    expected = [
        any(table.broken[a, s, t, n] for a in (0, 1) for s, source in enumerate(CELLS) if source != target)
        for n in range(20)
    ]
    assert table.broken_by_others(target).tolist() == expected
    only_own = np.zeros_like(table.broken)
    only_own[:, t, t] = only_own[2] = True
    assert not dataclasses.replace(table, broken=only_own).broken_by_others(target).any()


# The stage


def small(methods: list[str], seeds: list[int], attacks: list[str]) -> params.Params:
    """The smoke preset with a matrix of its own and an attack of the user's own."""
    p = params.parse(read_yaml(ROOT / "presets/smoke.yaml"), "smoke")
    own = {"own": EVALUATION.attacks["own"]}
    return p.model_copy(
        update={
            "matrix": params.Matrix(methods=methods, seeds=seeds),
            "evaluation": p.evaluation.model_copy(update={"attacks": p.evaluation.attacks | own}),
            "transfer": params.Transfer(attacks=attacks, draws=2),
        }
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[params.Params], Transfer]:
    """Runs the stage on untrained models, one a cell, all different; the code of the project counts as a constant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.machine, "prepare", lambda runtime: CPU)
    for module in (stage, cell):
        monkeypatch.setattr(module, "digest_code", lambda *_: "code")

    def run(p: params.Params, draw: bool = False) -> Transfer:
        if not draw:
            monkeypatch.setattr(stage.figure, "draw", lambda *_: None)
        if not Path("data").exists():
            store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)
        for place, method in enumerate(p.matrix.methods):
            for seed in p.matrix.seeds:
                folder = Path("runs") / method / f"seed-{seed}"
                if not folder.exists():
                    model, adversary, _ = Cell(p, method, 10 * place + seed).build(CPU)
                    save_weights(folder / "model.safetensors", model.state_dict(), architecture(p.model))
                    save_weights(folder / "adversary.safetensors", adversary.state_dict())
        monkeypatch.setattr(stage.params, "load", lambda: p)
        stage.main()
        return Transfer.load(Path("results/transfer/verdicts.npz"))

    return run


@pytest.fixture
def attacks_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attacks that are made on sources, as they happen."""
    made, images, generated = [], suite.images, stage.Generated
    monkeypatch.setattr(suite, "images", lambda name, *rest: made.append(name) or images(name, *rest))
    monkeypatch.setattr(stage, "Generated", lambda *rest: made.append(GENERATOR) or generated(*rest))
    return made


def test_the_stage_crosses_all_cells_and_its_diagonal_is_the_white_box_column(work) -> None:
    p = small(["at_pgd", "adt_exp_am", "adt_imp_am"], [0], ["pgd-3", "own"])
    table = work(p, draw=True)
    assert table.attacks == ["pgd-3", "own", GENERATOR]
    assert table.broken.shape == (3, 3, 3, 100) and table.made.tolist() == [[True] * 3, [True] * 3, [False, True, True]]
    test = load_split(Path("data/digits"), "test")
    for s, method in enumerate(p.matrix.methods):
        model, _, perturbations = Cell(p, method, 0).build(CPU)
        load_weights(Path(f"runs/{method}/seed-0/model.safetensors"), model)
        for a, name in enumerate(["pgd-3", "own"]):
            column = suite.column(name, p.evaluation, model, test, perturbations)
            assert np.array_equal(table.broken[a, s, s], column.broken)
    _, adversary, _ = Cell(p, "adt_imp_am", 0).build(CPU)
    load_weights(Path("runs/adt_imp_am/seed-0/adversary.safetensors"), adversary)
    load_weights(Path("runs/at_pgd/seed-0/model.safetensors"), model)
    stream = Stream.of(p.evaluation.seed, "attack", GENERATOR)
    generated = Generated(adversary, 2, p.train.batch_size)
    column = loop.run(generated, model, test, perturbations, stream, p.evaluation.batch_size)
    assert np.array_equal(table.broken[2, 2, 0], column.broken)
    assert np.array_equal(table.index, test.index.numpy()) and np.array_equal(table.labels, test.y.numpy())
    rows = read_csv(Path("results/transfer/transfer.csv"))
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(
        [row["accuracy"] for row in table.rows()], abs=1e-4
    )
    assert Path("results/transfer/transfer.png").read_bytes().startswith(b"\x89PNG")


def test_the_stage_repeats_nothing_that_is_finished(work, attacks_run: list[str], monkeypatch) -> None:
    p = small(["at_pgd", "adt_exp_am"], [0, 1], ["fgsm", "own"])
    work(p)
    assert attacks_run == ["fgsm", "own"] * 2 + ["fgsm", "own", GENERATOR] * 2
    files = {path: path.read_bytes() for path in Path("results/transfer").iterdir()}
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("attacked again"))
    work(p)
    assert {path: path.read_bytes() for path in files} == files


def test_an_interrupted_stage_goes_on_where_it_was(work, attacks_run: list[str], monkeypatch) -> None:
    p = small(["at_pgd", "adt_exp_am"], [0], ["fgsm", "own"])
    run = loop.run
    calls = []

    def interrupted(*arguments, **named) -> Column:
        calls.append(1)
        # Of 3 for each attack of a source, which is made and shown to two; and one for each target as it is.
        if len(calls) == 10:
            raise KeyboardInterrupt
        return run(*arguments, **named)

    monkeypatch.setattr(loop, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(p)
    assert attacks_run == ["fgsm", "own", "fgsm"]
    table = work(p)
    assert attacks_run[3:] == ["fgsm", "own", GENERATOR]
    assert table.made.sum() == 5


@pytest.mark.parametrize(
    "change, again",
    [
        ({"transfer": params.Transfer(attacks=["fgsm", "own"], draws=3)}, [GENERATOR]),
        ({"threat": params.Threat(set="linf", eps=0.1)}, ["fgsm", "own", "fgsm", "own", GENERATOR]),
        ({"threat": params.Threat(set="l2", eps=0.2)}, ["fgsm", "own", "fgsm", "own", GENERATOR]),
    ],
)
def test_what_a_parameter_changes_is_made_again(work, attacks_run: list[str], change, again: list[str]) -> None:
    p = small(["at_pgd", "adt_exp_am"], [0], ["fgsm", "own"])
    work(p)
    attacks_run.clear()
    work(p.model_copy(update=change))
    assert attacks_run == again


def test_another_attack_or_other_options_of_it_run_alone(work, attacks_run: list[str]) -> None:
    p = small(["at_pgd"], [0, 1], ["own"])
    work(p)
    attacks_run.clear()
    more = p.evaluation.attacks | {"own": EVALUATION.attacks["own"].model_copy(update={"options": {"share": 0.5}})}
    other = p.model_copy(update={"evaluation": p.evaluation.model_copy(update={"attacks": more})})
    work(other)
    assert attacks_run == ["own", "own"]
    work(other.model_copy(update={"transfer": params.Transfer(attacks=["own", "fgsm"], draws=2)}))
    assert attacks_run == ["own", "own", "fgsm", "fgsm"]


@pytest.mark.parametrize(("kind", "again"), [("model", 5), ("adversary", 1)])
def test_a_new_model_meets_everything_and_a_new_generator_everyone(
    work, attacks_run: list[str], kind: str, again: int
) -> None:
    p = small(["at_pgd", "adt_exp_am"], [0], ["fgsm", "own"])
    work(p)
    attacks_run.clear()
    model, adversary, _ = Cell(p, "adt_exp_am", 7).build(CPU)
    name = architecture(p.model) if kind == "model" else ""
    module = model if kind == "model" else adversary
    save_weights(Path(f"runs/adt_exp_am/seed-0/{kind}.safetensors"), module.state_dict(), name)
    work(p)
    assert len(attacks_run) == again


def test_a_new_cell_is_shown_what_the_others_make_and_nothing_is_shown_twice(work, monkeypatch) -> None:
    work(small(["at_pgd"], [0, 1], ["fgsm"]))
    shown, run = [], loop.run

    def counted(attack, model, *rest, **named) -> Column:
        shown.extend([1] if isinstance(attack, Shown) else [])
        return run(attack, model, *rest, **named)

    monkeypatch.setattr(loop, "run", counted)
    grown = work(small(["at_pgd"], [0, 1, 2], ["fgsm"]))
    assert len(shown) == 1 + 1 + 3
    for path in Path(".work/transfer").iterdir():
        path.unlink()
    assert np.array_equal(work(small(["at_pgd"], [0, 1, 2], ["fgsm"])).broken, grown.broken)


def test_one_cell_attacks_itself(work) -> None:
    table = work(small(["at_pgd"], [0], ["fgsm"]))
    assert table.sources == table.targets == ["at_pgd-0"] and table.broken.shape == (1, 1, 1, 100)


def test_an_attack_cannot_take_the_name_of_the_generators(work) -> None:
    p = small(["at_pgd"], [0], ["fgsm"])
    named = p.evaluation.attacks | {GENERATOR: p.evaluation.attacks["fgsm"]}
    evaluation = p.evaluation.model_copy(update={"attacks": named})
    taken = p.model_copy(update={"evaluation": evaluation, "transfer": params.Transfer(attacks=[GENERATOR], draws=2)})
    with pytest.raises(UserError, match="transfer.attacks: 'generator'"):
        work(taken)


def test_the_name_of_a_cell_is_its_method_and_seed() -> None:
    assert [cell_name(method, seed) for method in ("at_pgd", "adt_exp_am") for seed in (0, 3)] == CELLS
