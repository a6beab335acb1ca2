"""Checked parameters as plain JSON, for a node that has torch and numpy but no pydantic.

At home `job` writes what training and attacking cells need of a `Params`; on the node `load` makes of it
objects with the same names, so that the same code runs and content keys come out equal.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.adversaries.profiles import PROFILES, resolve
from pipeline.errors import UserError
from pipeline.files import read_json

if TYPE_CHECKING:
    from pipeline.params import Params

FORMAT = "adt-job-1"
SECTIONS = ("data", "threat", "model", "train", "matrix", "evaluation", "runtime")
_ALIASES = {"profile": "as"}  # attribute -> key; `as` is a word of Python's own


class Settings(dict):
    """A dictionary whose keys are attributes too: what a section of checked parameters is to the code that reads it.

    Nothing is checked here, and attributes cannot be set. A key that is a method of dictionaries (`items`,
    say) is reached as a key alone; no section has one.
    """

    __slots__ = ()

    def __init__(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        every = {**(values or {}), **more}
        super().__init__({key: _made(value) for key, value in every.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[_ALIASES.get(name, name)]
        except KeyError:
            raise AttributeError(name) from None

    def model_dump(
        self, *, exclude: Collection[str] = (), exclude_none: bool = False, by_alias: bool = False
    ) -> dict[str, Any]:
        """As pydantic has it: nested dictionaries; `exclude` names keys of the outermost."""
        names = {} if by_alias else {key: name for name, key in _ALIASES.items()}
        return {
            names.get(key, key): value.model_dump(exclude_none=exclude_none, by_alias=by_alias)
            if isinstance(value, Settings)
            else value
            for key, value in self.items()
            if names.get(key, key) not in exclude and not (exclude_none and value is None)
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> "Settings":
        """The same with other values for some keys."""
        changes = {_ALIASES.get(name, name): value for name, value in (update or {}).items()}
        return type(self)({**self, **changes})

    def open_switches(self) -> list[str]:
        """None: `method` and `job` fill them in."""
        return []


class Job(Settings):
    """The sections of `Params` that cells and their verdict tables depend on."""

    __slots__ = ()

    def method(self, name: str) -> Settings:
        """The parameters of one training method, every switch resolved."""
        return self["methods"][name]


def method(name: str, values: Mapping[str, Any]) -> Settings:
    """Unchecked parameters of a method, its switches filled in where `values` says `as` and leaves them out."""
    switches = {switch: words[values["as"]] for switch, words in PROFILES[name].items()} if "as" in values else {}
    return Settings(switches | dict(values))


def job(p: "Params") -> dict[str, Any]:
    """What a node needs of `p`, as JSON: methods of the matrix with every switch resolved."""
    methods = {name: resolve(name, p.method(name)).model_dump(by_alias=True) for name in p.matrix.methods}
    return {
        "format": FORMAT,
        "preset": p.preset,
        **{name: getattr(p, name).model_dump(by_alias=True) for name in SECTIONS},
        "methods": methods,
        "left_out": list(p.left_out),
    }


def load(path: Path) -> Job:
    """The job in a file that `job` made; `UserError` where it is none."""
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no job file: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: no job file of format {FORMAT}; `python -m stages.node write` makes one")
    return Job(values)


def _made(value: Any) -> Any:
    return Settings(value) if isinstance(value, dict) and not isinstance(value, Settings) else value
