"""Verdict tables: accuracies as column means, the worst case as the AND."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.verdicts import COLUMN, NATURAL, WORST_CASE, Column, Verdicts

TABLES = hnp.arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 12)))


def table(broken: np.ndarray) -> Verdicts:
    """A verdict table with attacks a0, a1, ... in this order."""
    columns = {
        f"a{number}": Column(
            row, np.where(row, -1.0, 1.0).astype(np.float32), np.full(len(row), 0.1, np.float32), 6 * number, 3
        )
        for number, row in enumerate(broken)
    }
    count = broken.shape[1]
    return Verdicts.join(columns, np.arange(count) % 3, 100 + np.arange(count), "checksum")


@given(TABLES)
def test_an_accuracy_is_the_share_of_examples_that_hold(broken: np.ndarray) -> None:
    accuracies = table(broken).accuracies()
    assert list(accuracies) == [*(f"a{number}" for number in range(len(broken))), WORST_CASE]
    for number, row in enumerate(broken):
        assert accuracies[f"a{number}"] == pytest.approx(np.count_nonzero(~row) / len(row))


@given(TABLES)
def test_the_worst_case_counts_the_examples_that_hold_under_every_attack(broken: np.ndarray) -> None:
    survivors = sum(not any(column) for column in broken.T)
    assert table(broken).accuracy(WORST_CASE) == pytest.approx(survivors / broken.shape[1])


@given(TABLES)
def test_the_worst_case_is_no_better_than_any_attack(broken: np.ndarray) -> None:
    accuracies = table(broken).accuracies()
    assert all(accuracies[WORST_CASE] <= value for value in accuracies.values())


@given(TABLES)
def test_another_attack_never_raises_the_worst_case(broken: np.ndarray) -> None:
    worst = [table(broken[:count]).accuracy(WORST_CASE) for count in range(1, len(broken) + 1)]
    assert worst == sorted(worst, reverse=True)


@given(TABLES)
def test_the_first_breaking_attack_is_the_first_in_table_order(broken: np.ndarray) -> None:
    expected = [next((f"a{n}" for n, hit in enumerate(column) if hit), None) for column in broken.T]
    assert table(broken).first_breaking() == expected


@given(TABLES, st.data())
def test_an_example_is_broken_by_a_group_where_any_of_it_breaks_it(broken: np.ndarray, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, unique=True))
    got = table(broken).broken_by([f"a{number}" for number in chosen])
    assert got.tolist() == [any(column[chosen]) for column in broken.T]


@given(TABLES, st.data())
def test_the_examples_that_an_attack_breaks_are_named_by_their_index(broken: np.ndarray, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(broken) - 1))
    assert table(broken).breaks(f"a{number}") == [100 + place for place, hit in enumerate(broken[number]) if hit]


def test_costs_are_counted_an_example() -> None:
    costs = table(np.zeros((2, 3), bool)).costs()
    assert costs["a0"] == {"gradient_evaluations": 0, "forward_passes": 1}
    assert costs["a1"] == {"gradient_evaluations": 2, "forward_passes": 1}


def test_a_column_survives_a_round_trip(tmp_path: Path) -> None:
    column = Column(np.array([True, False]), np.array([-1, 2], np.float32), np.array([0.1, 0.2], np.float32), 7, 9)
    column.save(tmp_path / "column.npz")
    again = Column.load(tmp_path / "column.npz")
    assert (again.gradient_evaluations, again.forward_passes) == (7, 9)
    for name in ("broken", "margin", "norm"):
        assert np.array_equal(getattr(again, name), getattr(column, name))


def test_a_table_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.npz"
    saved = table(np.array([[True, False, False], [False, False, True]]))
    saved.save(path)
    loaded = Verdicts.load(path)
    assert (loaded.attacks, loaded.checkpoint) == (["a0", "a1"], "checksum")
    for name in (*COLUMN, "labels", "index"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert after.dtype == before.dtype and np.array_equal(after, before)


def test_the_parameters_of_attacks_travel_with_the_table(tmp_path: Path) -> None:
    column = Column(np.array([True]), np.ones(1, np.float32), np.ones(1, np.float32))
    said = {"natural": "{}", "pgd": '{"steps": 20}'}
    names = {name: column for name in ("pgd", "natural")}
    Verdicts.join(names, np.zeros(1, np.int64), np.arange(1), "", said).save(tmp_path / "verdicts.npz")
    assert Verdicts.load(tmp_path / "verdicts.npz").settings == ['{"steps": 20}', "{}"]


def test_a_table_from_before_parameters_were_kept_says_none(tmp_path: Path) -> None:
    saved = table(np.array([[True, False]]))
    saved.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as arrays:
        np.savez(tmp_path / "old.npz", **{name: arrays[name] for name in arrays if name != "settings"})
    assert Verdicts.load(tmp_path / "old.npz").settings == Verdicts.load(tmp_path / "new.npz").settings == []


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        table(np.array([[True, False]])).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_saved_table_opens_without_pickles(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.npz"
    table(np.array([[True, False]])).save(path)
    with np.load(path, allow_pickle=False) as arrays:
        assert {"attacks", "broken", "margin", "norm", "labels", "index"} <= set(arrays)
        assert arrays["attacks"].tolist() == ["a0"]


def test_natural_is_a_column_like_any_other() -> None:
    rows = {NATURAL: [True, False, False], "pgd-20": [False, False, True]}
    ones = np.ones(3, np.float32)
    columns = {name: Column(np.array(row), ones, ones) for name, row in rows.items()}
    accuracies = Verdicts.join(columns, np.zeros(3, np.int64), np.arange(3), "").accuracies()
    assert accuracies == pytest.approx({NATURAL: 2 / 3, "pgd-20": 2 / 3, WORST_CASE: 1 / 3})
