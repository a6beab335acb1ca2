"""A grid study: every point once, whatever interrupts it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.search.grid import Point, run_grid

LAMS, SEEDS = [0.0, 0.1, 10.0], [0, 2]
POINTS: list[Point] = [{"lam": lam, "seed": seed} for lam in LAMS for seed in SEEDS]


class Killed(Exception):
    """Stands for the end of a process."""


class Evaluation:
    """Measures a point; remembers which, and can be killed before the answer to the n-th."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.points: list[Point] = []
        self.killed_at = killed_at

    def __call__(self, point: Point) -> tuple[float, dict[str, float]]:
        self.points.append(dict(point))
        if len(self.points) == self.killed_at:
            raise Killed
        return 0.5 + sum(point.values()) / 100, {"natural": 0.9 - point["lam"] / 20, "worst-case": point["seed"] / 3}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "study.db"


def row(point: Point) -> dict[str, float]:
    value, measured = Evaluation()(point)
    return {**point, "val_robust": value, **measured}


ROWS = [row(point) for point in POINTS]


def test_every_point_is_evaluated_once_and_makes_a_row(storage: Path) -> None:
    evaluate = Evaluation()
    assert run_grid(POINTS, evaluate, storage, "study") == ROWS
    assert evaluate.points == POINTS


def test_rows_come_in_the_order_asked_for(storage: Path) -> None:
    run_grid(POINTS, Evaluation(), storage, "study")
    assert run_grid(POINTS[::-1], Evaluation(), storage, "study") == ROWS[::-1]


@pytest.mark.parametrize("killed_at", range(1, len(POINTS) + 1))
def test_an_interrupted_study_evaluates_only_what_is_missing(killed_at: int, storage: Path) -> None:
    first, second, before, after = Evaluation(killed_at), Evaluation(), [], []
    with pytest.raises(Killed):
        run_grid(POINTS, first, storage, "study", before.append)
    assert run_grid(POINTS, second, storage, "study", after.append) == ROWS
    assert before == after[: killed_at - 1], "what was finished is reported again, first"
    assert first.points[:-1] + second.points == POINTS


def test_a_finished_study_is_only_read(storage: Path) -> None:
    run_grid(POINTS, Evaluation(), storage, "study")
    again = Evaluation()
    assert run_grid(POINTS, again, storage, "study") == ROWS
    assert again.points == []


def test_an_extended_grid_repeats_nothing(storage: Path) -> None:
    run_grid(POINTS[1:3], Evaluation(), storage, "study")
    more = Evaluation()
    assert run_grid(POINTS, more, storage, "study") == ROWS
    assert more.points == POINTS[:1] + POINTS[3:]


def test_a_smaller_grid_shows_only_its_own_points(storage: Path) -> None:
    run_grid(POINTS, Evaluation(), storage, "study")
    assert run_grid(POINTS[1:2], Evaluation(), storage, "study") == ROWS[1:2]


def test_points_of_one_study_may_have_different_coordinates(storage: Path) -> None:
    points: list[Point] = [{"lam": 0.0, "seed": 1}, {"lam": 0.0, "tau": 0.0, "seed": 1}, {"lam": 1e-4, "tau": -0.5}]
    measured = [(0.25 * n, {"natural": float(n)}) for n in range(3)]
    answers = iter(measured)
    rows = run_grid(points, lambda _: next(answers), storage, "study")
    assert rows == [{**p, "val_robust": v, **m} for p, (v, m) in zip(points, measured, strict=True)]


def test_a_study_of_another_name_shares_nothing(storage: Path) -> None:
    run_grid(POINTS, Evaluation(), storage, "study")
    other = Evaluation()
    run_grid(POINTS, other, storage, "another")
    assert other.points == POINTS


def test_every_point_is_reported_as_soon_as_it_is_there(storage: Path) -> None:
    reported = []
    run_grid(POINTS, Evaluation(), storage, "study", reported.append)
    assert reported == ROWS


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(-1, 1)), min_size=1, max_size=3, unique=True))
def test_a_trial_gets_exactly_the_numbers_asked_for(tmp_path: Path, points: list[tuple[float, float]]) -> None:
    evaluate = Evaluation()
    asked: list[Point] = [{"lam": lam, "tau": tau, "seed": 0} for lam, tau in points]
    got = run_grid(asked, evaluate, tmp_path / "study.db", f"study {points}")
    assert evaluate.points == asked == [{name: r[name] for name in ("lam", "tau", "seed")} for r in got]
