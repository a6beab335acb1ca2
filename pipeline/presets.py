"""Presets: complete parameter files under presets/, materialised into params.yaml by command."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import params
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.yaml_files import dump, parse_commented, parse_text, read_commented, read_yaml

FOLDER = Path("presets")
OVERRIDES = "# Overrides: "
COST = "# Cost: "


def names() -> list[str]:
    """Every preset, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def summary(name: str) -> str:
    """The first comment line of a preset."""
    return _path(name).read_text().splitlines()[0].removeprefix("#").strip()


def cost(name: str) -> str | None:
    """What a preset says it costs, in its line `# Cost: ...`; None where it has none."""
    lines = _path(name).read_text().splitlines()
    return next((line.removeprefix(COST) for line in lines if line.startswith(COST)), None)


def load(name: str) -> params.Params:
    """The parameters of a preset."""
    return params.load(_path(name))


def render(name: str, overrides: Sequence[str] = ()) -> str:
    """The text of params.yaml for a preset with `KEY=VALUE` overrides, checked against the schema.

    Overrides are named in the header, so that the file says itself what it is.
    """
    path = _path(name)
    if not overrides:
        params.load(path)
        return path.read_text()
    return _overridden(read_commented(path), overrides, overrides, f"preset {name}")


def use(name: str, overrides: Sequence[str], target: Path) -> None:
    """Write `target` from a preset; nothing is written if anything is wrong."""
    write_text(target, render(name, overrides))


def amend(target: Path, overrides: Sequence[str]) -> str:
    """The text of the parameter file `target` with further `KEY=VALUE` overrides, checked against the schema.

    Its header names them beside those that it had; whatever else was edited by hand stays. For a file made by
    `render` it is the text that `render` gives for all overrides together.
    """
    text = target.read_text()
    before: list[str] = []
    if text.startswith(OVERRIDES):
        header, _, text = text.partition("\n")
        before = re.split(r" (?=[a-z][\w.-]*=)", header.removeprefix(OVERRIDES))
    renewed = {item.partition("=")[0] for item in overrides}
    kept = [item for item in before if item.partition("=")[0] not in renewed]
    return _overridden(parse_commented(text, str(target)), overrides, [*kept, *overrides], str(target))


def differences(target: Path, name: str | None) -> list[str]:
    """`key: preset's value -> target's value`, a line each; `name` defaults to the target's own preset."""
    mine = read_yaml(target)
    if not isinstance(mine, dict):
        raise UserError(f"{target}: expected keys and values")
    theirs = read_yaml(_path(name or str(mine.get("preset", ""))))
    left, right = dict(flatten(theirs)), dict(flatten(mine))
    absent = "(absent)"
    return [
        f"{key}: {left.get(key, absent)} -> {right.get(key, absent)}"
        for key in list(left) + [key for key in right if key not in left]
        if left.get(key, absent) != right.get(key, absent)
    ]


def _path(name: str) -> Path:
    path = FOLDER / f"{name}.yaml"
    if name not in names():
        raise UserError(f"preset {name!r}: no such preset; there are: {', '.join(names())}")
    return path


def _overridden(document: Any, overrides: Sequence[str], named: Sequence[str], source: str) -> str:
    """The text of a document with `overrides`, checked, under a header with those that are `named`."""
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}: expected KEY=VALUE, for example train.epochs=5")
        _assign(document, key.split("."), parse_commented(value, f"--set {key}"), key)
    text = f"{OVERRIDES}{' '.join(named)}\n{dump(document)}"
    source = f"{source} with {' '.join(overrides)}"
    params.parse(parse_text(text, source), source)
    return text


def _assign(document: Any, path: list[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        if not isinstance(document, dict) or part not in document:
            raise UserError(f"--set {key}: no key {part!r}; there are: {_keys(document)}")
        document = document[part]
    known = params.keys_at(path[:-1])
    if not isinstance(document, dict) or path[-1] not in {*document, *known}:
        raise UserError(f"--set {key}: no key {path[-1]!r}; there are: {', '.join(known) or _keys(document)}")
    document[path[-1]] = value


def _keys(document: Any) -> str:
    return ", ".join(map(str, document)) if isinstance(document, dict) else "(none below a value)"


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below nested dictionaries with its dotted key."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
