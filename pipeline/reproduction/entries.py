"""What dvc.lock says of one stage: the parameters and dependencies that made its outputs, and their MD5."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.files import digest
from pipeline.reproduction.lock import LOCK, PARAMS, Digests
from pipeline.yaml_files import read_yaml


@dataclass(frozen=True)
class Entry:
    """One stage of dvc.lock: `params` as recorded, `outputs` path -> MD5, and the hash of what `made` them."""

    stage: str
    params: dict[str, Any]
    outputs: dict[str, str]
    made: str

    def describes(self, path: Path) -> bool:
        """Whether a file is the output that this entry records (DVC writes the entry after the file)."""
        recorded = self.outputs.get(str(path))
        return recorded is not None and recorded == Digests(Path()).of(str(path))


def entry(stage: str) -> Entry | None:
    """The entry of a stage; None where dvc.lock is absent or has no such stage. `UserError` for broken YAML."""
    if not LOCK.exists():
        return None
    status = LOCK.stat()
    found = _stages(str(LOCK.absolute()), status.st_mtime_ns, status.st_size).get(stage)
    if found is None:
        return None
    params = found.get("params", {}).get(str(PARAMS), {})
    dependencies = {dep["path"]: dep.get("md5") for dep in found.get("deps", [])}
    outputs = {out["path"]: out.get("md5", "") for out in found.get("outs", [])}
    return Entry(stage, params, outputs, digest([params, dependencies]))


@lru_cache(maxsize=1)
def _stages(path: str, modified: int, size: int) -> dict[str, Any]:
    """The stages of one state of the file: parsing takes a good half second, and a follower asks often."""
    return (read_yaml(Path(path)) or {}).get("stages", {})
