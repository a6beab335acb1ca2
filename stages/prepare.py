"""prepare: put the data set into its common form under data/NAME/."""

from pathlib import Path

from pipeline import params
from pipeline.data import store
from pipeline.data.sources import SOURCES
from stages.common import run_stage


def main() -> None:
    """Load the data set of params.yaml, split it, write arrays and meta.json."""
    p = params.load()
    meta = store.save(SOURCES[p.data.name](p.data), Path("data") / p.data.name, p.data.name)
    counts = ", ".join(f"{count} {part}" for part, count in meta["counts"].items())
    print(f"data/{p.data.name}: {counts} images of {'x'.join(map(str, meta['shape']))}")


if __name__ == "__main__":
    run_stage(main)
