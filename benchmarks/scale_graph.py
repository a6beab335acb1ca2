"""The graph of cells of a preset, from dvc.yaml alone: every matrix written out, and what waits for what.

One stage waits for another where a path that it reads is a path that the other writes, or lies inside it or around
it. `dvc dag` says the same of the workspace it runs in; here no workspace and no DVC are needed.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.graph import Graph

if TYPE_CHECKING:
    from pipeline.params import Params

# What leads to the table of the paper: everything but the studies.
COMPARISON = ("prepare", "train", "attack", "probe", "transfer", "health", "compare", "report")
_OUTPUTS = ("outs", "metrics", "plots")
Values = Mapping[str, Any]


def cell_graph(p: "Params", stages: Values, only: Collection[str] | None = None) -> Graph:
    """Every cell of `stages` (those of dvc.yaml) with the cells it waits for, in the order of dvc.yaml.

    `only`: stages to restrict the graph to (None: all); what they read of others is taken to be there. `UserError`
    where dvc.yaml names a parameter that `p` lacks.
    """
    parameters, reads, writes = p.model_dump(by_alias=True), {}, {}
    for kind, stage in stages.items():
        if only is None or kind in only:
            listed = [entry for group in _OUTPUTS for entry in stage.get(group, [])]
            outputs = [path for entry in listed for path in ([entry] if isinstance(entry, str) else entry)]
            for cell, item in _cells(kind, stage, parameters):
                values = parameters | {"item": item}
                reads[cell] = [_filled(path, values) for path in stage.get("deps", [])]
                writes[cell] = [_filled(path, values) for path in outputs]
    return {cell: {other for other in writes if other != cell and _meet(reads[cell], writes[other])} for cell in reads}


def _cells(kind: str, stage: Values, parameters: Values) -> Iterator[tuple[str, Values]]:
    """The cells of a stage by DVC's names, each with its values of the matrix."""
    if "matrix" not in stage:
        yield kind, {}
        return
    axes = {
        axis: _looked_up(listed[2:-1], parameters) if isinstance(listed, str) else listed
        for axis, listed in stage["matrix"].items()
    }
    for values in itertools.product(*axes.values()):
        yield f"{kind}@{'-'.join(map(str, values))}", dict(zip(axes, values, strict=True))


def _filled(text: str, values: Values) -> str:
    """`text` with the value of every `${key}` in its place."""
    return re.sub(r"\$\{([^}]+)\}", lambda match: str(_looked_up(match[1], values)), text)


def _looked_up(key: str, values: Values) -> Any:
    value: Any = values
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise UserError(f"dvc.yaml: ${{{key}}}: no such parameter")
        value = value[name]
    return value


def _meet(paths: Collection[str], others: Collection[str]) -> bool:
    """Whether one of `paths` is one of `others`, or lies inside it or around it."""
    return any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in paths for b in others)
