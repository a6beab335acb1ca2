"""The authors' tables, as printed, and ours beside them."""

from pathlib import Path

import pytest

from pipeline import params, presets
from pipeline.comparison.published import TABLES, beside
from pipeline.errors import UserError
from pipeline.params.data import TITLES
from pipeline.params.studies import PUBLISHED
from stages import compare

ROOT = Path(__file__).parents[1]


def test_the_tables_are_as_printed() -> None:
    """Rows of the response to the reviews: natural, PGD-10, PGD-20, PGD-100, and natural, PGD-20, PGD-100."""
    means = {
        name: {method: [mean for mean, _ in row.values()] for method, row in table.values.items()}
        for name, table in TABLES.items()
    }
    assert means["table-a"] == {
        "at_pgd": [86.41, 55.90, 54.52, 54.20],
        "adt_exp": [86.49, 56.84, 55.43, 55.01],
        "adt_exp_am": [87.27, 56.28, 54.88, 54.58],
        "adt_imp_am": [87.38, 56.63, 55.10, 54.43],
    }
    assert means["table-b"] == {
        "at_pgd": [86.50, 49.77, 49.34],
        "adt_exp": [87.15, 52.38, 51.89],
        "adt_exp_am": [87.30, 53.01, 52.45],
        "adt_imp_am": [87.58, 51.90, 50.94],
    }
    assert TABLES["table-b"].values["adt_exp"]["pgd-100"] == (51.89, 0.22)
    assert TABLES["table-a"].metrics == ["natural", "pgd-10", "pgd-20", "pgd-100"]


@pytest.mark.parametrize(("name", "runs"), [("table-a", 1), ("table-b", 3)])
def test_a_spread_is_given_where_there_were_runs_for_one(name: str, runs: int) -> None:
    spreads = [std for row in TABLES[name].values.values() for _, std in row.values()]
    assert TABLES[name].runs == runs
    assert all((std is None) == (runs == 1) for std in spreads)


@pytest.mark.parametrize(
    ("mean", "std", "within"),
    [
        (49.77, 0.01, True),
        (49.97, 0.30, True),
        (49.97, 0.10, False),  # beyond ours
        (50.00, 0.30, False),  # beyond theirs, 0.21
        (49.57, 0.30, True),
        (49.97, None, None),  # of fewer than three runs
    ],
)
def test_a_difference_lies_within_both_spreads_or_not(mean: float, std: float | None, within: bool | None) -> None:
    pair = beside("table-b", {"at_pgd": {"pgd-20": {"mean": mean, "std": std}}})["methods"]["at_pgd"]["pgd-20"]
    assert (pair["ours"], pair["published"], pair["published_std"]) == (mean, 49.77, 0.21)
    assert pair["difference"] == pytest.approx(mean - 49.77) and pair["within"] is within


def test_a_single_published_run_has_no_spread_to_lie_within() -> None:
    pair = beside("table-a", {"at_pgd": {"pgd-20": {"mean": 54.52, "std": 1.0}}})["methods"]["at_pgd"]["pgd-20"]
    assert (pair["difference"], pair["within"]) == (0, None)


def test_what_we_did_not_run_is_left_empty() -> None:
    table = beside("table-b", {"at_pgd": {"natural": {"mean": 86.5, "std": 0.1}}, "trades": {}})
    assert list(table["methods"]) == list(TABLES["table-b"].values)
    assert table["methods"]["at_pgd"]["pgd-100"]["ours"] is None
    assert table["methods"]["adt_exp"]["natural"]["difference"] is None


@pytest.mark.parametrize(
    ("preset", "changes", "called"),
    [
        ("smoke", [], "digits"),
        ("cifar10-jpeg-resnet18", [], r"CIFAR-10 \(JPEG\)"),
        ("cifar10-table-b", ["data.title=CIFAR-10, upper halves"], "CIFAR-10, upper halves"),
        ("svhn", [], "SVHN"),
    ],
)
def test_a_published_table_is_not_put_beside_other_data(preset: str, changes: list[str], called: str) -> None:
    said = f"comparison.published: table-b is about CIFAR-10, and the data are {called}$"
    with pytest.raises(UserError, match=said):
        presets.render(preset, [*changes, "comparison.published=table-b"])


def test_every_published_table_is_about_known_data() -> None:
    assert PUBLISHED.keys() == TABLES.keys()
    assert set(PUBLISHED.values()) <= set(TITLES.values())


def test_counted_errors_become_accuracies() -> None:
    """3,593 and 7,062 errors of 10,000; 1,603 and 12,662 of 26,032."""
    assert TABLES["authors-cifar100"].values["adt_imp_am"] == {"natural": (64.07, None), "pgd-20": (29.38, None)}
    assert TABLES["authors-svhn"].values["adt_imp_am"] == {"natural": (93.84, None), "pgd-20": (51.36, None)}
    assert TABLES["rice-preactresnet18"].values["at_pgd"] == {"natural": (81.80, None), "pgd-10": (53.11, None)}


def test_no_table_is_put_beside_where_none_is_named() -> None:
    assert compare.beside(params.load(ROOT / "presets/smoke.yaml"), {}) is None
