"""dvc.lock as facts, and the same facts measured on disk: commands, parameters, dependencies, outputs.

DVC itself is not asked: `dvc status` trusts sizes and times of files that it has seen
before, here every byte is hashed again.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.yaml_files import read_yaml

LOCK = Path("dvc.lock")
STAGES = Path("dvc.yaml")
PARAMS = Path("params.yaml")
CACHE = Path(".dvc/cache/files/md5")
IGNORED_BY_DVC = (".dvc", ".git", ".hg")

# (stage, kind, name) -> value. Kinds: stage, command, parameter, dependency, output. Hashes are DVC's: the MD5 of a
# file, and for a folder that of its listing with the ending `.dir`.
Facts = dict[tuple[str, str, str], Any]


def defined(stages: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, str]:
    """Every stage that dvc.yaml and params.yaml define, with its command: `matrix` written out as DVC does.

    DVC keeps entries of removed stages in dvc.lock for ever, so the lock does not know them.
    """
    commands = {}
    for name, stage in stages["stages"].items():
        axes = {axis: _list(values, params) for axis, values in stage.get("matrix", {}).items()}
        for values in itertools.product(*axes.values()):
            item = dict(zip(axes, values, strict=True))
            full_name = f"{name}@{'-'.join(map(str, values))}" if axes else name
            commands[full_name] = _fill(stage["cmd"], {**params, "item": item})
    return commands


def locked(lock: Mapping[str, Any], commands: Mapping[str, str]) -> Facts:
    """What a dvc.lock says of the stages in `commands`; a stage that it lacks has no facts."""
    facts: Facts = {}
    for name in commands.keys() & lock["stages"].keys():
        stage = lock["stages"][name]
        facts[name, "stage", name] = "defined"
        facts[name, "command", ""] = stage["cmd"]
        for values in stage.get("params", {}).values():
            facts |= {(name, "parameter", key): value for key, value in flatten(values)}
        for kind, section in (("dependency", "deps"), ("output", "outs")):
            facts |= {(name, kind, item["path"]): item["md5"] for item in stage.get(section, [])}
    return facts


def measured(root: Path, lock: Mapping[str, Any], commands: Mapping[str, str]) -> Facts:
    """The same facts as the files under `root` have them now; what is missing there has no fact."""
    digests, contents = Digests(root), cache(read_yaml)
    facts: Facts = {}
    for name, command in commands.items():
        facts |= {(name, "stage", name): "defined", (name, "command", ""): command}
        stage = lock["stages"].get(name, {})
        for file, recorded in stage.get("params", {}).items():
            values = contents(root / file)
            for key in recorded:
                found = lookup(values, key)
                facts |= {(name, "parameter", k): v for k, v in flatten({} if found is None else {key: found})}
        for kind, section in (("dependency", "deps"), ("output", "outs")):
            found = {item["path"]: digests.of(item["path"]) for item in stage.get(section, [])}
            facts |= {(name, kind, path): md5 for path, md5 in found.items() if md5}
    return facts


class Digests:
    """MD5 of files and folders under a root as DVC computes them, each read once."""

    def __init__(self, root: Path) -> None:
        self.root, self.known = root, dict[str, str | None]()
        self.ignored = [*IGNORED_BY_DVC, *_ignored(root / ".dvcignore")]

    def of(self, path: str) -> str | None:
        """The MD5 of a file, that of a folder's listing with `.dir` behind it; None where there is neither."""
        if path not in self.known:
            place = self.root / path
            if place.is_dir():
                self.known[path] = hashlib.md5(json.dumps(self.listing(path)).encode()).hexdigest() + ".dir"
            else:
                self.known[path] = _md5(place) if place.is_file() else None
        return self.known[path]

    def listing(self, folder: str) -> list[dict[str, str]]:
        """The files of a folder, without what .dvcignore names, as DVC stores it in its cache."""
        place = self.root / folder
        files = {file.relative_to(place): file for file in place.rglob("*") if file.is_file()}
        kept = {f: p for f, p in files.items() if not any(fnmatch(part, i) for part in f.parts for i in self.ignored)}
        return [{"md5": _md5(kept[f]), "relpath": f.as_posix()} for f in sorted(kept, key=lambda f: f.as_posix())]

    def changed_in(self, folder: str, recorded: str) -> list[str]:
        """Files of a folder that are not what the listing `recorded` says; none where the cache has no such listing."""
        stored = self.root / CACHE / recorded[:2] / recorded[2:]
        if not stored.exists() or not (self.root / folder).is_dir():
            return []
        before, now = (
            {entry["relpath"]: entry["md5"] for entry in listing}
            for listing in (json.loads(stored.read_text()), self.listing(folder))
        )
        return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under dotted keys; an empty mapping is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def lookup(values: Any, key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _list(values: Any, params: Mapping[str, Any]) -> list[Any]:
    if isinstance(values, str):
        values = lookup(params, values.removeprefix("${").removesuffix("}"))
    if not isinstance(values, list):
        raise UserError(f"{STAGES}: matrix: expected a list, or ${{KEY}} of a list in {PARAMS}")
    return values


def _fill(command: str, values: Mapping[str, Any]) -> str:
    return re.sub(r"\$\{([^}]+)\}", lambda found: str(lookup(values, found[1])), command)


def _ignored(file: Path) -> list[str]:
    """The names that .dvcignore excludes anywhere in the tree; patterns of paths are not understood here."""
    lines = file.read_text().splitlines() if file.exists() else []
    patterns = [line.strip().removesuffix("/") for line in lines if line.strip() and not line.startswith("#")]
    for pattern in patterns:
        if "/" in pattern or pattern.startswith("!"):
            raise UserError(f"{file}: {pattern!r}: only names (with * and ?) are understood by verify, no paths or !")
    return patterns


def _md5(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
