"""Holding a reproduction against the record: to the byte on the same machine, by tolerance elsewhere."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.verify import distant_accuracies, unequal_entries


def lock(cmd: str = "x", deps: dict[str, str] | None = None, **outs: str) -> dict[str, Any]:
    def items(md5s: dict[str, str]) -> list[dict[str, str]]:
        return [{"path": path, "md5": md5} for path, md5 in md5s.items()]

    return {"stages": {"s": {"cmd": cmd, "deps": items(deps or {"d": "0"}), "outs": items(outs)}}}


def comparison(**means: float) -> dict[str, Any]:
    return {"methods": {method: {"pgd-20": {"mean": mean}} for method, mean in means.items()}}


def test_equal_locks_have_no_unequal_entries() -> None:
    assert unequal_entries(lock(a="1", b="2"), lock(a="1", b="2")) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lock(a="1", b="3"), "s outs b: 3, recorded 2"),
        (lock(a="1"), "s outs b: missing, recorded 2"),
        (lock(a="1", b="2", c="4"), "s outs c: 4, recorded nothing"),
        (lock(a="1", b="2", deps={"d": "5"}), "s deps d: 5, recorded 0"),
        (lock(a="1", b="2", cmd="y"), "s cmd: y, recorded x"),
    ],
)
def test_every_difference_of_locks_is_named(found: dict[str, Any], said: str) -> None:
    assert unequal_entries(lock(a="1", b="2"), found) == [said]


def test_accuracies_within_the_tolerance_agree_and_beyond_it_do_not() -> None:
    recorded = comparison(at_pgd=60.0, adt_exp=55.0)
    assert distant_accuracies(recorded, comparison(at_pgd=61.9, adt_exp=53.1), 2.0) == []
    assert distant_accuracies(recorded, comparison(at_pgd=62.1, adt_exp=55.0), 2.0) == [
        "at_pgd pgd-20: 62.1, recorded 60.0"
    ]


def test_a_method_that_is_missing_on_either_side_is_named() -> None:
    assert distant_accuracies(comparison(a=1.0), comparison(b=1.0), 5) == [
        "a pgd-20: None, recorded 1.0",
        "b pgd-20: 1.0, recorded None",
    ]


def test_the_committed_receipt_belongs_to_the_committed_lock(committed: Callable[[str], bytes]) -> None:
    receipt = json.loads(committed("receipt.json"))
    assert receipt["dvc.lock"] == hashlib.sha256(committed("dvc.lock")).hexdigest()
    assert {"torch", "processor", "threads"} <= receipt["machine"].keys()
