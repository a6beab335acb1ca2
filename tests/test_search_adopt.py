"""Adopting a trial: a diff first, params.yaml only on a yes, and a header that still says what the file is."""

import io
from pathlib import Path
from typing import Any

import pytest

from pipeline import adopt, cli, params, presets
from pipeline.errors import UserError
from pipeline.files import digest, write_json
from pipeline.plots import search as figure
from pipeline.search import table
from pipeline.search.space import made_with

ROOT = Path(__file__).parents[1]
TARGET = Path("params.yaml")
NAMES = ["lam", "steps", "lr", "epochs", "schedule"]
TRIED = {"lam": 0.00123, "steps": 2, "lr": 0.02, "epochs": 1, "schedule": "constant"}


def trial(
    number: int, state: str = "complete", robust: float | None = 0.5, cost: int = 1000, **values: Any
) -> table.Row:
    measured = {"val_robust": robust, "val_natural": 0.9, "gradient_evaluations": cost, "selected_epoch": 1}
    if robust is None:
        measured = dict.fromkeys(measured)
    pruned = {"pruned_at": 1 if state == "pruned" else None}
    row = {"number": number, "state": state, "method": "adt_exp", "seed": 0}
    return row | TRIED | {"lam": 0.01 * (number + 1)} | values | measured | pruned


ROWS = [
    trial(0, robust=0.4, cost=500),
    trial(1, robust=0.6, cost=4000, schedule="cosine", lam=0.00123),
    trial(2, "pruned", robust=0.7),
    trial(3, "diverged", robust=None),
    trial(4, robust=0.5, cost=2000),
]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke preset as params.yaml, and the table of its search."""
    monkeypatch.setattr(presets, "FOLDER", ROOT / "presets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    presets.use("smoke", [], TARGET)
    searched()


def searched() -> None:
    """Write the table as the search stage does for params.yaml as it is."""
    table.write(table.TRIALS, ROWS, NAMES)
    rows = table.read(table.TRIALS)
    write_json(table.BEST, {"chosen": table.best(rows), "made_with": made_with(params.load())})


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["search", *words])
    return ended.value.code


def test_a_table_is_read_back_as_it_was_written() -> None:
    assert table.read(table.TRIALS) == ROWS and table.parameters(ROWS) == NAMES


def test_the_chosen_trial_is_written_with_its_values_under_a_header_that_names_them(capsys) -> None:
    assert command("adopt", "--yes") == 0
    told, p = capsys.readouterr().out, params.load()
    assert (p.methods.adt_exp.lam, p.methods.adt_exp.steps, p.train.optimizer.lr) == (0.00123, 2, 0.02)
    assert (p.train.epochs, p.train.schedule.name) == (1, "cosine")
    assert "\n-train" not in told and "\n+# Overrides: methods.adt_exp.lam=0.00123 " in told
    assert "trial 1: validation robust accuracy 60.0 %" in told
    changed = [line for line in told.splitlines() if line.startswith(("+", "-"))]
    touched = {line.split(":")[0].strip("+- ") for line in changed[2:]}
    assert touched == {"# Overrides", "epochs", "optimizer", "adt_exp", "adt_imp_am", "{as"}, (
        "the last two are one line unwrapped"
    )
    header = TARGET.read_text().splitlines()[0].removeprefix(presets.OVERRIDES)
    assert TARGET.read_text() == presets.render(
        "smoke", header.replace(" train", "\ntrain").replace(" methods", "\nmethods").split("\n")
    )
    assert command("adopt") == 0 and "has these values already" in capsys.readouterr().out


def test_another_trial_can_follow_and_replaces_its_values_in_the_header() -> None:
    command("adopt", "--yes")
    command("adopt", "--trial", "4", "--yes")
    assert params.load().methods.adt_exp.lam == 0.05
    assert TARGET.read_text().splitlines()[0].count("methods.adt_exp.lam") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trial", "9"], "--trial 9: no such trial in results/search/trials.csv; there are 0 to 4"),
        (["--trial", "2", "--yes"], "--trial 2: this trial is pruned; only complete ones can be adopted"),
        (["--trial", "3", "--yes"], "--trial 3: this trial is diverged"),
        ([], "nothing is written without a terminal to ask on; read the diff, then give --yes"),
    ],
)
def test_what_cannot_be_adopted_is_one_line_and_writes_nothing(words: list[str], said: str, capsys) -> None:
    before = TARGET.read_bytes()
    assert command("adopt", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and TARGET.read_bytes() == before


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_a_person_is_asked(answer: str, status: int, monkeypatch) -> None:
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    before = TARGET.read_text()
    assert command("adopt") == status
    assert (TARGET.read_text() == before) == (status == 1)


def test_a_table_of_other_parameters_is_refused_with_their_names(capsys) -> None:
    presets.use("smoke", ["threat.eps=0.1", "train.ema=0.5"], TARGET)
    assert command("adopt", "--yes") == 2
    assert "made with other parameters (threat.eps, train.ema); run `dvc repro search`" in capsys.readouterr().err
    presets.use("smoke", ["search.trials=50", "methods.adt_exp.lam=3.0", "train.epochs=7", "matrix.seeds=[5]"], TARGET)
    assert command("adopt", "--yes") == 0, "neither the budget, nor what is searched, nor other sections count"


@pytest.mark.parametrize("missing", [table.TRIALS, table.BEST])
def test_without_a_search_there_is_nothing_to_adopt_or_show(missing: Path, capsys) -> None:
    missing.unlink()
    for action in ("adopt", "show"):
        assert command(action) == 2
        assert f"{missing}: no such file; run `dvc repro search` first" in capsys.readouterr().err


def test_what_was_edited_by_hand_stays_with_its_comment() -> None:
    presets.use("smoke", ["matrix.seeds=[0, 1, 2]", "threat.eps=0.3"], TARGET)
    TARGET.write_text(TARGET.read_text().replace("  batch_size: 50\n", "  batch_size: 20  # by hand\n"))
    text = presets.amend(TARGET, ["methods.adt_exp.lam=0.5", "threat.eps=0.25"])
    assert "batch_size: 20  # by hand\n" in text
    assert text.startswith("# Overrides: matrix.seeds=[0, 1, 2] methods.adt_exp.lam=0.5 threat.eps=0.25\n")
    with pytest.raises(UserError, match="threat.eps"):
        presets.amend(TARGET, ["threat.eps=-1"])


def test_show_marks_the_front_and_the_chosen_trial() -> None:
    lines = adopt.shown()
    marks = {line.split()[1 if line.split()[0].startswith(("->", "*")) else 0]: line[:3] for line in lines[1:6]}
    assert {number: mark.strip() for number, mark in marks.items()} == {
        "0": "*",
        "1": "->*",
        "2": "",
        "3": "",
        "4": "*",
    }
    assert len({len(line) for line in lines[:6]}) == 1, "columns stand below each other"


# Figures


def draw(rows: list[table.Row], folder: Path, shares: dict[str, dict[str, float]]) -> str:
    """Draws every figure; returns the hash of all bytes."""
    figure.history("digits", rows, folder / "history.png")
    figure.importance("digits", shares, "adt_exp", folder / "importance.png")
    figure.slices("digits", rows, NAMES, {"lam"}, folder / "slice.png")
    figure.parallel("digits", rows, NAMES, {"lam"}, folder / "parallel.png")
    figure.pareto("digits", rows, table.front(rows), table.best(rows), folder / "pareto.png")
    return digest({path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())})


@pytest.mark.parametrize("count", [1, 5])
def test_figures_are_the_same_bytes_every_time_also_of_one_trial(count: int) -> None:
    shares = {"robust accuracy": {"lam": 0.7, "lr": 0.3} if count > 1 else {}, "gradient evaluations": {}}
    assert draw(ROWS[:count], Path("one"), shares) == draw(ROWS[:count], Path("two"), shares)
    assert len(list(Path("one").iterdir())) == 10


def test_the_history_shows_every_trial_and_the_best_so_far_without_those_given_up(monkeypatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(figure, "save", lambda drawn, path: saved.append(drawn))
    figure.history("digits", ROWS, Path("history.png"))
    lines = {line.get_label(): line.get_xydata().tolist() for line in saved[0].axes[0].get_lines()}
    assert [y for _, y in lines["best so far"]] == [40, 60, 60, 60, 60]
    assert lines["trained to the end"] == [[0, 40], [1, 60], [4, 50]]
    assert lines["given up early"] == [[2, 70]] and [x for x, _ in lines["diverged"]] == [3]


def test_the_front_is_drawn_through_the_trials_that_nothing_beats(monkeypatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(figure, "save", lambda drawn, path: saved.append(drawn))
    figure.pareto("digits", ROWS, table.front(ROWS), table.best(ROWS), Path("pareto.png"))
    axes = saved[0].axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["Pareto front"] == [[500, 40], [2000, 50], [4000, 60]]
    assert lines["chosen: trial 1"] == [[4000, 60]]
