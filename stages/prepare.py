"""prepare: put the data set into its common form under data/NAME/."""

from pathlib import Path

from pipeline import params
from pipeline.data import store
from pipeline.data.sources import SOURCES
from stages.common import run_stage


def main() -> None:
    """Load the data set of params.yaml, split it, write arrays and meta.json."""
    data = params.load().data
    arrays = SOURCES[data.name](data)
    meta = store.save(arrays, Path("data") / data.name, data.name, data.called, data.sha256)
    counts = ", ".join(f"{count} {part}" for part, count in meta["counts"].items())
    shape = "x".join(map(str, meta["shape"]))
    print(f"data/{data.name}: {data.called}, {counts} images of {shape}, content {meta['sha256']}")


if __name__ == "__main__":
    run_stage(main)
