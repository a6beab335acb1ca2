"""From the values of one trial to the parameters of its training, and back into params.yaml."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import params
from pipeline.params import Params
from pipeline.params.search import SCHEDULE, Search

Values = dict[str, float | int | str]


def assignments(search: Search, values: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of params.yaml that a trial's `values` (by name) stand for, and their plain content."""
    schedules = {schedule.name: schedule.model_dump(exclude_none=True) for schedule in search.schedules}
    return {
        path: schedules[values[name]] if name == SCHEDULE else values[name] for name, path in search.paths().items()
    }


def changed(p: Params, values: Mapping[str, Any]) -> Params:
    """`p` with a trial's values in their places, checked again: `UserError` where the schema refuses them together."""
    tree = p.model_dump(by_alias=True)
    for path, value in assignments(p.search, values).items():
        section, last = _section(tree, path)
        section[last] = value
    return params.parse(tree, f"trial with {', '.join(f'{name} {value}' for name, value in values.items())}")


def corners(search: Search) -> Iterator[Values]:
    """Points of the space that have the schema check it: all low ends, all high ends, with every schedule."""
    for end in ("low", "high"):
        ranges = {n: _number(search, n, getattr(limits, end)) for n, limits in search.space.items()}
        yield from ({**ranges, SCHEDULE: schedule.name} for schedule in search.schedules)
        if not search.schedules:
            yield ranges


def base(p: Params) -> Params:
    """`p` with everything that is searched at one fixed point, so that adopting a trial changes nothing in it."""
    return changed(p, next(corners(p.search)))


def made_with(p: Params) -> dict[str, Any]:
    """The sections of params.yaml that all trials share: what a table of trials belongs to. No budget in it."""
    tree = p.model_dump(mode="json", by_alias=True)
    for path in p.search.paths().values():
        section, last = _section(tree, path)
        del section[last]
    del tree["train"]["checkpoint_seconds"], tree["train"]["stall_seconds"], tree["search"]["trials"]
    shared = {name: tree[name] for name in ("data", "threat", "model", "train", "search")}
    return shared | {"methods": {p.search.method: tree["methods"][p.search.method]}}


def _number(search: Search, name: str, value: float) -> float | int:
    return int(value) if search.is_whole(name) else value


def _section(tree: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds the last part of a dotted path, and that part."""
    *parents, last = path.split(".")
    for part in parents:
        tree = tree[part]
    return tree, last
