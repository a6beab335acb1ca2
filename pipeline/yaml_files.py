"""Reading and writing YAML with its comments kept."""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError


def read_yaml(path: Path) -> Any:
    """The plain content of a YAML file (dicts, lists, scalars)."""
    return _parse(path, YAML(typ="safe", pure=True))


def parse_text(text: str, source: str) -> Any:
    """The plain content of YAML text; `source` names it in errors."""
    return _load(text, YAML(typ="safe", pure=True), source)


def parse_commented(text: str, source: str) -> Any:
    """The content of YAML text with comments and order attached, for `dump`; `source` names it in errors."""
    return _load(text, _round_trip(), source)


def read_commented(path: Path) -> Any:
    """The content of a YAML file with comments and order attached, for `dump`."""
    return _parse(path, _round_trip())


def dump(document: Any) -> str:
    """YAML text of a document of `read_commented`."""
    buffer = io.StringIO()
    _round_trip().dump(document, buffer)
    return buffer.getvalue()


def _round_trip() -> YAML:
    """A reader and writer that changes nothing but what was assigned: lines, braces and nulls stay as written."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    yaml.representer.add_representer(
        type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _parse(path: Path, yaml: YAML) -> Any:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    return _load(text, yaml, str(path))


def _load(text: str, yaml: YAML, source: str) -> Any:
    try:
        return yaml.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{source}{where}: not valid YAML: {reason}") from None
