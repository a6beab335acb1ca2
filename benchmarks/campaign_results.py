"""What comes back from a node: small files, packed there, checked and put in place at home.

Of each cell run.json, metrics.json, history.csv, its verdict table, and device.json: seconds, machine, memory and
the hash of the checkpoint, which itself stays behind. Under benchmarks/results/campaign/PRESET/PART/ they lie as
in a workspace, so that `python -m pipeline compare --runs` reads them.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.campaign_run import FORMAT, PLAN, Place, places, plan
from pipeline import live
from pipeline.errors import UserError
from pipeline.files import digest, digest_file, read_json, write_bytes, write_json
from pipeline.verdicts import Verdicts

FILE = "campaign-{}.tar.xz"
CELLS = 16  # in a file, which so stays under 16 MiB with the verdicts of 10,000 images under ten attacks
DESCRIBED = ("method", "seed", "data", "threat", "model", "train", "method_params", "code")
_NAME = re.compile(r"[\w.-]+/(runs/\w+/seed-\d+/[a-z]+\.(json|csv)|verdicts/\w+/seed-\d+\.(json|npz))")


def write(root: Path, output: Path) -> list[Path]:
    """Pack what the cells have so far into `output`/campaign-N.tar.xz; of those not trained, the history."""
    started = [place for place in places(root) if place.is_trained() or place.under_way()]
    made = []
    for number, first in enumerate(range(0, max(1, len(started)), CELLS), 1):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
            _add(archive, PLAN, json.dumps(plan(root), indent=2).encode())
            for place in started[first : first + CELLS]:
                for name, content in _files(root, place):
                    _add(archive, name, content)
        made.append(output / FILE.format(number))
        write_bytes(made[-1], buffer.getvalue())
    return made


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _files(root: Path, place: Place) -> Iterator[tuple[str, bytes]]:
    """(name, content) of everything small of a cell."""
    if not place.is_trained():
        folder = place.under_way()
        if folder is not None and (folder / "history.csv").exists():
            yield f"unfinished/{place.part}/{place.method}-seed-{place.seed}.csv", (folder / "history.csv").read_bytes()
        return
    chosen = [place.run / name for name in ("run.json", "metrics.json", "history.csv")]
    if place.is_done():
        chosen += [place.verdicts, place.verdicts.with_suffix(".json")]
    for file in chosen:
        yield str(file.relative_to(root)), file.read_bytes()
    device = json.dumps(_device(place), indent=2).encode()
    yield str((place.run / "device.json").relative_to(root)), device


def _device(place: Place) -> dict[str, Any]:
    """The circumstances of training and attacks."""
    record = place.folder / live.WORK / "record"

    def recorded(key: str) -> dict[str, Any]:
        path = record / f"{key[:32]}.json"
        return read_json(path) if path.exists() else {}

    return {
        "checkpoint_sha256": digest_file(place.run / "model.safetensors"),
        "cuda": torch.version.cuda,
        "training": recorded(place.key),
        "verdicts": recorded(digest_file(place.verdicts)) if place.is_done() else {},
    }


def collect(source: Path, target: Path) -> list[str]:
    """Check what a node sent (a file or the folder that holds the files) and put it under `target`/PRESET.

    Returns a line about the campaign, then one a cell that is trained. `UserError` for the first thing
    that is wrong; nothing is written then. What is there already of the same key is replaced only by more:
    training without verdicts never replaces verdicts.
    """
    archives = sorted(source.glob(FILE.format("*"))) if source.is_dir() else [source]
    if not archives:
        raise UserError(f"{source}: holds no {FILE.format('N')}")
    contents: dict[str, bytes] = {}
    for archive in archives:
        contents |= _read(archive)
    plan = json.loads(contents.pop(PLAN, b"{}"))
    if plan.get("format") != FORMAT:
        raise UserError(f"{source}: holds no plan of format {FORMAT}")
    lines, chosen = [f"{plan['preset']} on {plan['data']}, code {plan.get('commit', 'unknown')[:12]}"], {}
    for cell in plan["cells"]:
        run = f"{cell['part']}/runs/{cell['method']}/seed-{cell['seed']}"
        table = f"{cell['part']}/verdicts/{cell['method']}/seed-{cell['seed']}.npz"
        if f"{run}/run.json" not in contents:
            continue
        lines.append(_checked(cell, run, table, contents, plan["attacks"]))
        names = [
            name for name in contents if name.startswith(f"{run}/") or name.removesuffix(".json") + ".npz" == table
        ]
        names += [table] * (table in contents)
        kept = target / plan["preset"] / table
        if table in contents or not kept.exists() or _key(target / plan["preset"] / run) != cell["key"]:
            chosen |= {name: contents[name] for name in names}
    for name, content in chosen.items():
        write_bytes(target / plan["preset"] / name, content)
    write_json(target / plan["preset"] / PLAN, plan)
    return lines


def _read(archive: Path) -> dict[str, bytes]:
    """The files of an archive that a campaign may hold, by name."""
    try:
        with tarfile.open(archive, "r:xz") as tar:
            infos = [info for info in tar if info.isfile() and (info.name == PLAN or _NAME.fullmatch(info.name))]
            return {info.name: tar.extractfile(info).read() for info in infos}  # type: ignore[union-attr]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{archive}: cannot be read as results of a campaign: {error}") from None


def _key(run: Path) -> str | None:
    return read_json(run / "run.json")["key"] if (run / "run.json").exists() else None


def _checked(
    cell: dict[str, Any], run: str, table: str, contents: dict[str, bytes], attacks: dict[str, dict[str, str]]
) -> str:
    """What is said of a cell; `UserError` where its files do not belong together or to the plan."""
    described, metrics, device = (json.loads(contents[f"{run}/{n}.json"]) for n in ("run", "metrics", "device"))
    epochs = contents[f"{run}/history.csv"].decode().count("\n") - 1
    key = digest({name: described[name] for name in DESCRIBED})
    if not key == described["key"] == cell["key"]:
        raise UserError(f"{run}/run.json: is of the cell {key[:16]}, planned was {cell['key'][:16]}")
    if not 0 < metrics["selected_epoch"] <= epochs <= described["train"]["epochs"]:
        raise UserError(f"{run}/history.csv: {epochs} epochs, of which number {metrics['selected_epoch']} was selected")
    told = f"{cell['part']} {cell['method']} seed {cell['seed']}: {epochs} epochs"
    told += f", {device['training'].get('seconds', float('nan')):.0f} s on {device['training']['machine']['device']}"
    if table not in contents:
        return f"{told}, not attacked"
    verdicts = _table(contents[table])
    if verdicts.checkpoint != device["checkpoint_sha256"]:
        raise UserError(f"{table}: is about another checkpoint than {run}")
    if dict(zip(verdicts.attacks, verdicts.settings, strict=True)) != attacks[cell["part"]]:
        raise UserError(f"{table}: its attacks are not those of the plan")
    accuracies = verdicts.accuracies()
    if accuracies != json.loads(contents[table.removesuffix(".npz") + ".json"]):
        raise UserError(f"{table}: does not give the accuracies in the file beside it")
    return f"{told}, natural {accuracies['natural']:.2%}, worst case {accuracies['worst-case']:.2%}"


def _table(content: bytes) -> Verdicts:
    return Verdicts.load(io.BytesIO(content))  # type: ignore[arg-type]  # numpy reads streams as well
