"""The cells of a preset on a GPU that is rented by the minute: `python -m benchmarks.campaign COMMAND`.

    pack --preset NAME --output PACK.tar     at home: code, resolved parameters and data in one file under 64 MiB
    tar xf PACK.tar -C FOLDER; cd FOLDER     on the node, which needs torch, numpy, tqdm and safetensors
    run --budget MINUTES --output DIR        there: works on open cells, several at once, and stops before the
                                             budget ends; called again, it continues
    status                                   there: how far every cell is
    collect DIR                              at home: checks the files that run wrote to DIR and puts them under
                                             benchmarks/results/campaign/PRESET
    python -m pipeline compare --runs 'benchmarks/results/campaign/PRESET/main/runs/*/*'

Order: one seed of each method, the other seeds, ADT_EXP at the other lambdas of the ablation's grid, WRN-28-10.
The state of trainings stays on the node's disk; results are written after every cell and at the end, so a
node that is lost costs the cells under way. Data that are images in an archive travel as that archive, and
the node needs Pillow to unpack them.
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import campaign_data, campaign_results, campaign_run, command
from pipeline import live
from pipeline.errors import UserError
from pipeline.files import digest, write_bytes, write_json

ROOT = Path(__file__).parents[1]
FOLDER = Path("campaign")  # on the node
LIMIT = 64  # MiB
RESULTS = Path("benchmarks/results/campaign")
SPARE = 10.0  # seconds of the budget that are left for the last results


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    command.run(lambda parsed: parsed.do(parsed), _parser(), arguments)


def _pack(parsed: argparse.Namespace) -> None:
    from benchmarks import campaign_plan  # needs pydantic, which only home has
    from pipeline import bare, params, presets
    from pipeline.attacks import suite
    from pipeline.cell import Cell
    from pipeline.data import store
    from pipeline.data.sources import SOURCES
    from pipeline.yaml_files import parse_text

    source = f"preset {parsed.preset}"
    values = parse_text(presets.render(parsed.preset, parsed.set), source)
    if parsed.data:
        kind = "folder" if parsed.data.is_dir() else "archive"
        values["data"] = {**values["data"], "folder": None, "archive": None, kind: str(parsed.data)}
    p = params.parse(values, source)
    chosen = p.ablation.chosen.adt_exp
    lambdas = parsed.lambdas if parsed.lambdas is not None else chosen.lam if chosen else []
    found = campaign_plan.parts(p, lambdas, parsed.wide, parsed.attacks)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays = SOURCES[p.data.name](p.data)
        prepared = folder / "prepared" / p.data.name
        meta = store.save(arrays, prepared, p.data.name, p.data.called, p.data.sha256)
        archive = Path(p.data.archive) if p.data.name == "image_folder" and p.data.archive else None
        campaign_data.pack(p.data, arrays, meta, archive, folder / "packed")
        cells = campaign_plan.cells(found)
        jobs = {part.name: bare.Job(part.job) for part in found}
        for cell in cells:
            cell["key"] = _key(Cell(jobs[cell["part"]], cell["method"], cell["seed"]), folder / "prepared")
        plan = {
            "format": campaign_run.FORMAT,
            "preset": parsed.preset,
            "overrides": parsed.set,
            "data": p.data.called,
            **live.code_version(),
            "cells": cells,
            "attacks": {
                name: {a: suite.said(job, a) for a in suite.attacks(job.evaluation)} for name, job in jobs.items()
            },
        }
        write_json(folder / "plan.json", plan)
        for part in found:
            write_json(folder / part.name / "job.json", part.job)
        names = ["plan.json", "packed", *jobs]
        content = _tar([(folder / name, f"{FOLDER}/{name}") for name in names])
    if len(content) > parsed.limit * 2**20:
        raise UserError(
            f"{parsed.output}: would have {len(content) / 2**20:.1f} MiB, more than the {parsed.limit} MiB that may"
            " travel; give the data as an archive of images (--data), or --limit"
        )
    write_bytes(parsed.output, content)
    for number, cell in enumerate(cells, 1):
        print(f"{number:3} {cell['part']:14}{cell['method']:12} seed {cell['seed']}")
    left = [name for name in p.evaluation.attacks if name not in found[0].job["evaluation"]["attacks"]]
    print(f"attacks left out: {', '.join(left) or 'none'}")
    print(f"{parsed.output}: {len(content) / 2**20:.1f} MiB, {len(cells)} cells, {p.data.called}")


def _key(cell: Any, data: Path) -> str:
    """The content key of a cell whose data lie prepared in a folder of `data`."""
    import contextlib

    root = Path.cwd()
    with contextlib.chdir(data.parent):
        for name in campaign_run.CODE:
            if not Path(name).exists():
                Path(name).symlink_to(root / name)
        if not Path("data").exists():
            Path("data").symlink_to(data)
        return digest(cell.description())


def _tar(folders: Sequence[tuple[Path, str]]) -> bytes:
    """The code of this repository and the folders under their new names, as a tar file; equal content, equal bytes."""
    files = [
        (path, path.relative_to(ROOT).as_posix()) for name in campaign_run.CODE for path in (ROOT / name).rglob("*.py")
    ]
    for source, name in folders:
        inside = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
        files += [
            (path, f"{name}/{path.relative_to(source).as_posix()}" if path != source else name) for path in inside
        ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, name in sorted(files, key=lambda pair: pair[1]):
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, 0o644
            with open(path, "rb") as handle:
                archive.addfile(info, handle)
    return buffer.getvalue()


def _run(parsed: argparse.Namespace) -> None:
    if parsed.budget <= 0 or (parsed.parallel is not None and parsed.parallel < 1):
        raise UserError("--budget and --parallel: more than 0")
    started = time.monotonic()
    campaign_run.settle(FOLDER)

    def finished() -> None:
        campaign_results.write(FOLDER, parsed.output)

    until = started + 60 * parsed.budget - min(SPARE, 6 * parsed.budget)
    failed = campaign_run.run(FOLDER, until, parsed.parallel, finished)
    for file in campaign_results.write(FOLDER, parsed.output):
        print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB")
    print("\n".join(campaign_run.status(FOLDER)))
    if failed:
        raise UserError("; ".join(failed))


def _status(parsed: argparse.Namespace) -> None:
    print("\n".join(campaign_run.status(FOLDER)))


def _collect(parsed: argparse.Namespace) -> None:
    print("\n".join(campaign_results.collect(parsed.source, parsed.target)))


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("campaign", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="at home: everything a node needs, in one file")
    pack.set_defaults(do=_pack)
    pack.add_argument("--preset", required=True)
    pack.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as of `preset use`")
    pack.add_argument("--data", type=Path, metavar="PATH", help="folder or archive of the source, if not the preset's")
    pack.add_argument("--attacks", nargs="+", help="attacks of the evaluation (default: all but family autoattack)")
    pack.add_argument("--lambdas", nargs="*", type=float, help="of ADT_EXP (default: those of the ablation's grid)")
    pack.add_argument("--no-wide", dest="wide", action="store_false", help="leave WRN-28-10 out")
    pack.add_argument("--limit", type=float, default=LIMIT, help=f"MiB that may travel (default {LIMIT})")
    pack.add_argument("--output", type=Path, required=True, metavar="PACK.tar")
    run = commands.add_parser("run", help="on the node: work on open cells")
    run.set_defaults(do=_run)
    run.add_argument("--budget", type=float, required=True, metavar="MINUTES")
    run.add_argument("--parallel", type=int, metavar="N", help="processes at once (default: measured; 1 on a CPU)")
    run.add_argument("--output", type=Path, required=True, metavar="DIR", help="where results are written")
    status = commands.add_parser("status", help="on the node: how far every cell is")
    status.set_defaults(do=_status)
    collect = commands.add_parser("collect", help="at home: check results and put them in place")
    collect.set_defaults(do=_collect)
    collect.add_argument("source", type=Path, metavar="DIR")
    collect.add_argument("--target", type=Path, default=RESULTS, metavar="DIR", help=f"default {RESULTS}")
    return parser


if __name__ == "__main__":
    main()
