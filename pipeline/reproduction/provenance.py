"""From a file or a cell of the table back to what made it: run, checkpoint, parameters, data, commit, machine.

Nothing is taken on trust that can be looked at: hashes are computed again and held against
dvc.lock, accuracies are counted again in the verdict tables.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from pipeline import live
from pipeline.errors import UserError
from pipeline.files import digest_file, read_json
from pipeline.reproduction.evidence import Evidence, field, receipt, settings
from pipeline.reproduction.receipt import COMPARISON, mapping
from pipeline.reproduction.tolerance import summaries
from pipeline.verdicts import WORST_CASE, Verdicts

MOST = 3  # cells that are walked when a number stands in several
NUMBER = re.compile(r"-?\d+(?:\.(\d+))? ?%?")
CELL = re.compile(r"(?:runs|verdicts)/([^/]+)/seed-(\d+)[/.]")
RUN = 4  # columns that what is said of a run stands in
Cells = Mapping[tuple[str, str], Mapping[str, Any]]  # (method, metric) -> mean, std, runs


def trace(target: str, metric: str | None = None) -> list[str]:
    """The walk from an output file, a METHOD with a METRIC, or a number of the comparison, as lines of text.

    Works on the current folder. `UserError` where nothing matches.
    """
    evidence = Evidence()
    if metric is not None:
        return walk_cell(evidence, _comparison(), target, metric)
    path = Path(os.path.relpath(target)).as_posix()
    if evidence.output(path):
        return walk_file(evidence, path)
    cells = _comparison()
    if NUMBER.fullmatch(target):
        return walk_number(evidence, cells, target)
    methods = {method: [metric for name, metric in cells if name == method] for method, _ in cells}
    if target in methods:
        raise UserError(f"provenance {target}: name a metric, too: {', '.join(methods[target])}")
    raise UserError(
        f"provenance {target}: no output of a stage in dvc.lock, no number, and no method ({', '.join(methods)})"
    )


def walk_file(evidence: Evidence, path: str) -> list[str]:
    """What made one output: stage, parameters, dependencies, the commit that has it, the machine."""
    stage, output = evidence.output(path)
    entry = evidence.stages[stage]
    lines = [path, *field("made by", f"dvc repro {stage}    ({entry['cmd']})"), *field("bytes", evidence.bytes(path))]
    if output != path:
        lines += field("part of", f"{output}  {evidence.bytes(output)}")
    for file, values in entry.get("params", {}).items():
        lines += field("parameters", f"{file}: {settings(values)}")
    for index, item in enumerate(entry.get("deps", [])):
        lines += field("" if index else "depends on", f"{item['path']}  {evidence.bytes(item['path'], item['md5'])}")
    lines += field("commit", evidence.commit(output)) + field("receipt", receipt())
    cell = CELL.match(path)
    return lines + (list(_training(evidence, *cell.groups(), indent=2)) if cell else [])


def walk_cell(
    evidence: Evidence, cells: Cells, method: str, metric: str, seeds: Sequence[str] | None = None
) -> list[str]:
    """What one cell of the table is made of, run by run: those of `seeds`, or all."""
    if (method, metric) not in cells:
        methods, metrics = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
        known = f"methods: {', '.join(methods)}; metrics: {', '.join(metrics)}"
        raise UserError(f"provenance {method} {metric}: no such cell in {COMPARISON}; {known}")
    summary = cells[method, metric]
    runs = summary["runs"]
    spread = "too few for a deviation" if summary["std"] is None else f"sample deviation {summary['std']:g}"
    lines = [f"{method} {metric}: mean {summary['mean']:g} %, {spread}, over seeds {', '.join(runs)}"]
    lines += field("table", evidence.file(COMPARISON))
    said: list[str] = []
    for seed in seeds or runs:
        run = [*_verdicts(evidence, method, seed, metric, runs[seed]), *_training(evidence, method, seed)]
        # Runs of a method share settings and data: what was said of the last one is not said again.
        lines += [f"  seed {seed}: {runs[seed]:g} %", *(line for line in run if line not in said)]
        said = run
    return lines + field("receipt", receipt())


def walk_number(evidence: Evidence, cells: Cells, text: str) -> list[str]:
    """Every cell whose mean or run rounds to a number, and the walk from each where they are few."""
    decimals = len(NUMBER.fullmatch(text)[1] or "")
    wanted = f"{float(text.rstrip(' %')):.{decimals}f}"
    found: dict[tuple[str, str], list[str]] = {}
    for cell, summary in cells.items():
        values = {"mean": summary["mean"], **summary["runs"]}
        places = [place for place, value in values.items() if f"{value:.{decimals}f}" == wanted]
        found |= {cell: places} if places else {}
    if not found:
        raise UserError(f"provenance {text}: no mean and no run in {COMPARISON} rounds to it")
    lines = [f"{text} stands in {COMPARISON} as"]
    for (method, metric), places in found.items():
        named = ", ".join("mean over seeds" if place == "mean" else f"seed {place}" for place in places)
        lines += [f"  {method} {metric}: {named}"]
    if len(found) > MOST:
        return [*lines, f"more than {MOST} cells: `python -m pipeline provenance METHOD METRIC` walks one of them"]
    for (method, metric), places in found.items():
        lines += ["", *walk_cell(evidence, cells, method, metric, None if "mean" in places else places)]
    return lines


def _verdicts(evidence: Evidence, method: str, seed: str, metric: str, value: float) -> Iterator[str]:
    """A run's verdict table: its bytes, its stage, whether it says `value`, and of which checkpoint."""
    path = Path("verdicts") / method / f"seed-{seed}.npz"
    yield from field("verdicts", evidence.file(path), RUN)
    if not path.exists():
        return
    try:
        table = Verdicts.load(path)
    except (OSError, ValueError, KeyError, BadZipFile):
        yield from field("", "NOT A VERDICT TABLE: it cannot be read", RUN)
        return
    if metric not in (*table.attacks, WORST_CASE):
        yield from field("", f"HAS NO COLUMN {metric}: the comparison was not made from it", RUN)
        return
    counted = 100 * table.accuracy(metric)
    agrees = abs(counted - value) < 1e-3  # comparison.json keeps 4 decimals
    told = "as the comparison says" if agrees else f"NOT THE {value:g} % OF THE COMPARISON"
    yield from field("", f"{counted:g} % of {len(table.labels)} images hold, {told}", RUN)
    checkpoint = _folder(method, seed) / "model.safetensors"
    if checkpoint.exists() and digest_file(checkpoint) != table.checkpoint:
        yield from field("", f"OF ANOTHER CHECKPOINT, with sha256 {table.checkpoint}", RUN)


def _training(evidence: Evidence, method: str, seed: str, indent: int = RUN) -> Iterator[str]:
    """A run's checkpoint, key, resolved parameters and data, and when and where it was trained."""
    path, description = (_folder(method, seed) / name for name in ("model.safetensors", "run.json"))
    yield from field("checkpoint", evidence.file(path), indent)
    if path.exists():
        yield from field("", f"sha256 {digest_file(path)}", indent)
    if not description.exists():
        yield from field("run", f"{description} is not here; `dvc pull` fetches it", indent)
        return
    run = read_json(description)
    yield from field("run", f"key {run['key']} ({description})", indent)
    yield from field("method", settings(run["method_params"]), indent)
    yield from field("training", settings({name: run[name] for name in ("threat", "model", "train")}), indent)
    yield from field("data", f"{run['data']['name']}, sha256 {run['data']['sha256']}", indent)
    facts = live.recorded(run["key"])
    yield from field("trained", _circumstances(facts) if facts else f"elsewhere; {evidence.commit(str(path))}", indent)
    if facts:
        yield from field("on", settings(facts["machine"]), indent)


def _circumstances(facts: Mapping[str, Any]) -> str:
    commit = f"at commit {facts['commit'][:7]}" if "commit" in facts else "outside a repository"
    return f"here, in {facts['seconds']:g} s, {commit}" + (" with uncommitted changes" if facts.get("dirty") else "")


def _folder(method: str, seed: str) -> Path:
    return Path("runs") / method / f"seed-{seed}"


def _comparison() -> Cells:
    if not COMPARISON.exists():
        raise UserError(f"{COMPARISON}: no such file; `dvc repro` makes it")
    content = mapping(COMPARISON.read_text(), str(COMPARISON))
    if "methods" not in content:
        raise UserError(f"{COMPARISON}: has no key 'methods'")
    return summaries(content)
