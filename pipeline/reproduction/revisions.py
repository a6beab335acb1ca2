"""What git remembers: the content of a file at a revision, and which commit brought it."""

import subprocess
from pathlib import Path

from pipeline.errors import UserError

FORMAT = "%h, %cs: %s"  # a commit for people: short hash, day, subject


def commit_of(root: Path, revision: str) -> str:
    """The full hash of the commit that `revision` names, for the repository that holds the folder `root`.

    `UserError` where git is missing, `root` is in no repository, or there is no such commit.
    """
    inside = _git(root, "rev-parse", "--is-inside-work-tree")
    if inside.returncode:
        raise UserError(f"{root.resolve()}: git refuses it: {_last_line(inside.stderr)}")
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        raise UserError(f"--against {revision}: no such revision in this git repository")
    return found.stdout.decode().strip()


def content(root: Path, commit: str, path: Path) -> str:
    """The text of `path` (relative to `root`) at a commit; `UserError` where it is not there."""
    shown = _git(root, "show", f"{commit}:./{path.as_posix()}")
    if shown.returncode:
        raise UserError(f"{path}: not in commit {commit[:7]}, so there is nothing to compare with")
    return shown.stdout.decode(errors="replace")


def last_change(root: Path, path: Path) -> str | None:
    """The newest commit that changed a file, in `FORMAT`; None where git does not have it."""
    return next(iter(_log(root, "--max-count=1", "--", path.as_posix())), None)


def differs(root: Path, path: Path) -> bool:
    """Whether a file is not what the last commit has."""
    return _git(root, "diff", "--quiet", "HEAD", "--", path.as_posix()).returncode == 1


def first_mention(root: Path, text: str, path: Path) -> str | None:
    """The oldest commit since which `text` stands in a file, in `FORMAT`; None where it was never committed."""
    commits = _log(root, f"-S{text}", "--", path.as_posix())
    return commits[-1] if commits else None


def _log(root: Path, *arguments: str) -> list[str]:
    done = _git(root, "log", f"--format={FORMAT}", *arguments)
    return done.stdout.decode(errors="replace").splitlines()


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError("git: not found; what is recorded lies in git") from None


def _last_line(errors: bytes) -> str:
    return (errors.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
