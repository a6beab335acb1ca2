"""Presets: complete parameter files under presets/, materialised into params.yaml by command."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import params
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.yaml_files import dump, parse_text, read_commented, read_yaml

FOLDER = Path("presets")
OVERRIDES = "# Overrides: "


def names() -> list[str]:
    """Every preset, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def summary(name: str) -> str:
    """The first comment line of a preset."""
    return _path(name).read_text().splitlines()[0].removeprefix("#").strip()


def render(name: str, overrides: Sequence[str] = ()) -> str:
    """The text of params.yaml for a preset with `KEY=VALUE` overrides, checked against the schema.

    Overrides are named in the header, so that the file says itself what it is.
    """
    path = _path(name)
    if not overrides:
        params.load(path)
        return path.read_text()
    document = read_commented(path)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}: expected KEY=VALUE, for example train.epochs=5")
        _assign(document, key.split("."), parse_text(value, f"--set {key}"), key)
    text = f"{OVERRIDES}{' '.join(overrides)}\n{dump(document)}"
    source = f"preset {name} with {' '.join(overrides)}"
    params.parse(parse_text(text, source), source)
    return text


def use(name: str, overrides: Sequence[str], target: Path) -> None:
    """Write `target` from a preset; nothing is written if anything is wrong."""
    write_text(target, render(name, overrides))


def differences(target: Path, name: str | None) -> list[str]:
    """`key: preset's value -> target's value`, a line each; `name` defaults to the target's own preset."""
    mine = read_yaml(target)
    if not isinstance(mine, dict):
        raise UserError(f"{target}: expected keys and values")
    theirs = read_yaml(_path(name or str(mine.get("preset", ""))))
    left, right = dict(_flatten(theirs)), dict(_flatten(mine))
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


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _flatten(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
