"""The edge of every benchmark command: arguments in, a user's mistake out in one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from pipeline.errors import UserError


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.NAME` that shows `description` as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(
    body: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> None:
    """Parse and do it; a `UserError` becomes one line on stderr and exit status 2."""
    parsed = parser.parse_args(arguments)
    try:
        body(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
