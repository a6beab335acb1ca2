"""What can be said of a file that a stage made: its stage, its bytes, its commit, the machine; as lines of text."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import digest_file
from pipeline.reproduction import lock, revisions
from pipeline.reproduction.lock import LOCK, PARAMS, STAGES
from pipeline.reproduction.receipt import RECEIPT, mapping
from pipeline.yaml_files import read_yaml

ROOT = Path()
WIDTH = 118


class Evidence:
    """The outputs that dvc.lock of the current folder names, and what the files themselves say."""

    def __init__(self) -> None:
        if not LOCK.exists():
            raise UserError(f"{LOCK}: no such file; nothing was made here yet: run `dvc repro` first")
        defined = lock.defined(read_yaml(STAGES), read_yaml(PARAMS))
        stages = mapping(LOCK.read_text(), str(LOCK)).get("stages", {})
        self.stages: dict[str, Any] = {name: stage for name, stage in stages.items() if name in defined}
        self.digests = lock.Digests(ROOT)

    def output(self, path: str) -> tuple[str, str] | None:
        """The stage that makes a file, and its output that is the file or the folder with it; None if none does."""
        for name, stage in self.stages.items():
            for item in stage.get("outs", []):
                if path == item["path"] or path.startswith(f"{item['path']}/"):
                    return name, item["path"]
        return None

    def file(self, path: Path) -> str:
        """An output's name, its bytes, and the command that makes it."""
        found = self.output(str(path))
        return f"{path}, {self.bytes(str(path))}; " + (f"dvc repro {found[0]}" if found else f"in no stage of {LOCK}")

    def bytes(self, path: str, recorded: str | None = None) -> str:
        """The MD5 of a file or folder now, and `recorded` (default: as an output in dvc.lock) if that is another."""
        recorded = recorded or self.recorded(path)
        found = self.digests.of(path)
        if recorded is None or found == recorded:
            return f"md5 {found}" if found else "not here"
        return f"md5 {found or 'missing (`dvc pull` fetches it)'}, BUT {LOCK} SAYS {recorded}"

    def recorded(self, path: str) -> str | None:
        """The MD5 of an output in dvc.lock."""
        outputs = (item for stage in self.stages.values() for item in stage.get("outs", []))
        return next((item["md5"] for item in outputs if item["path"] == path), None)

    def commit(self, path: str) -> str:
        """The commit that last changed a file in git, or the one since which dvc.lock names its bytes."""
        changed = revisions.last_change(ROOT, Path(path))
        if changed:
            edited = ", AND THE FILE DIFFERS FROM IT NOW" if revisions.differs(ROOT, Path(path)) else ""
            return f"{changed} (last change of the file in git{edited})"
        md5 = self.recorded(path)
        since = revisions.first_mention(ROOT, md5, LOCK) if md5 else None
        return f"{since} (first to record these bytes in {LOCK})" if since else "none yet has it"


def receipt() -> str:
    """The machine and libraries that receipt.json names, if it speaks of this very dvc.lock."""
    if not RECEIPT.exists():
        return f"no {RECEIPT} here; `python -m pipeline verify --record` writes it"
    content = mapping(RECEIPT.read_text(), str(RECEIPT))
    if content.get("dvc.lock") != digest_file(LOCK):
        return f"{RECEIPT} belongs to another {LOCK} than this one"
    return settings({**content["machine"], **content.get("libraries", {})})


def settings(values: Mapping[str, Any]) -> str:
    """Nested settings on one line; what is not set is left out."""
    return ", ".join(f"{key}={value}" for key, value in lock.flatten(values) if value is not None)


def field(name: str, text: str, indent: int = 2) -> list[str]:
    """A named text, wrapped; with an empty name it continues the field before."""
    start = f"{'':{indent}}{name:11} "
    wrapper = textwrap.TextWrapper(WIDTH, start, " " * len(start), break_on_hyphens=False, break_long_words=False)
    return wrapper.wrap(text)
