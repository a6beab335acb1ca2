"""The lambda grid: every point once, whatever interrupts it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.search.grid import lambda_grid

LAMS, SEEDS = [0.0, 0.1, 10.0], [0, 2]
POINTS = [(lam, seed) for lam in LAMS for seed in SEEDS]


class Killed(Exception):
    """Stands for the end of a process."""


class Evaluation:
    """Measures a point; remembers which, and can be killed before the answer to the n-th."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.points: list[tuple[float, int]] = []
        self.killed_at = killed_at

    def __call__(self, lam: float, seed: int) -> tuple[float, dict[str, float]]:
        self.points.append((lam, seed))
        if len(self.points) == self.killed_at:
            raise Killed
        return 0.5 + lam / 100 + seed / 1000, {"natural": 0.9 - lam / 20, "worst-case": lam + seed}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "study.db"


def row(lam: float, seed: int) -> dict[str, float]:
    value, measured = Evaluation()(lam, seed)
    return {"lam": lam, "seed": seed, "val_robust": value, **measured}


ROWS = [row(lam, seed) for lam, seed in POINTS]


def test_every_point_is_evaluated_once_and_makes_a_row(storage: Path) -> None:
    evaluate = Evaluation()
    assert lambda_grid(LAMS, SEEDS, evaluate, storage, "study") == ROWS
    assert sorted(evaluate.points) == POINTS


def test_rows_are_ordered_by_lambda_then_seed_whatever_the_order_asked(storage: Path) -> None:
    assert lambda_grid(LAMS[::-1], SEEDS[::-1], Evaluation(), storage, "study") == ROWS


@pytest.mark.parametrize("killed_at", range(1, len(POINTS) + 1))
def test_an_interrupted_study_evaluates_only_what_is_missing(killed_at: int, storage: Path) -> None:
    first, second, before, after = Evaluation(killed_at), Evaluation(), [], []
    with pytest.raises(Killed):
        lambda_grid(LAMS, SEEDS, first, storage, "study", before.append)
    assert lambda_grid(LAMS, SEEDS, second, storage, "study", after.append) == ROWS
    assert before == after[: killed_at - 1], "what was finished is reported again, first"
    assert sorted(first.points[:-1] + second.points) == POINTS


def test_a_finished_study_is_only_read(storage: Path) -> None:
    lambda_grid(LAMS, SEEDS, Evaluation(), storage, "study")
    again = Evaluation()
    assert lambda_grid(LAMS, SEEDS, again, storage, "study") == ROWS
    assert again.points == []


def test_an_extended_grid_repeats_nothing(storage: Path) -> None:
    lambda_grid(LAMS[:2], SEEDS[:1], Evaluation(), storage, "study")
    more = Evaluation()
    assert lambda_grid(LAMS, SEEDS, more, storage, "study") == ROWS
    assert sorted(more.points) == sorted(set(POINTS) - {(0.0, 0), (0.1, 0)})


def test_a_smaller_grid_shows_only_its_own_points(storage: Path) -> None:
    lambda_grid(LAMS, SEEDS, Evaluation(), storage, "study")
    assert lambda_grid(LAMS[:1], SEEDS[1:], Evaluation(), storage, "study") == [row(0.0, 2)]


def test_a_study_of_another_name_shares_nothing(storage: Path) -> None:
    lambda_grid(LAMS, SEEDS, Evaluation(), storage, "study")
    other = Evaluation()
    lambda_grid(LAMS, SEEDS, other, storage, "another")
    assert sorted(other.points) == POINTS


def test_every_point_is_reported_as_soon_as_it_is_there(storage: Path) -> None:
    reported = []
    lambda_grid(LAMS, SEEDS, Evaluation(), storage, "study", reported.append)
    assert reported == ROWS


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=3, unique=True))
def test_a_trial_gets_exactly_the_lambda_asked_for(tmp_path: Path, lams: list[float]) -> None:
    evaluate = Evaluation()
    got = lambda_grid(lams, [0], evaluate, tmp_path / "study.db", f"study {lams}")
    assert sorted(lam for lam, _ in evaluate.points) == sorted(lams) == [r["lam"] for r in got]
