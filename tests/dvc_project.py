"""A small project of DVC's in a folder of a test, and commands run in it."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class DvcProject:
    """A folder; `environment`: variables that its commands get beside those of the test."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.environment = folder, dict(environment or {})

    def run(self, *command: str, **environment: str) -> str:
        """What a command prints, which must end well."""
        variables = os.environ | self.environment | environment
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def commit(self) -> None:
        """Commit everything that is there."""
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "made")
