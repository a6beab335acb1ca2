"""node: train and attack cells where only torch, numpy, tqdm and safetensors are installed.

    python -m stages.node write job.json       # at home: params.yaml, resolved, for a node without pydantic
    python -m stages.node run job.json         # there: the files of the stages train and attack, cell by cell

Both run in a workspace: the node's needs the folders pipeline/, stages/, plugins/ and data/NAME of the one at
home. What the node writes under runs/, verdicts/ and .work/record/ is what the stages would have written
on that machine. `run` continues where it was killed and leaves alone what is finished. With these three
folders copied home and all cells of the matrix done,

    dvc commit -f train attack && python -m pipeline track

completes the record; `dvc repro` then runs what comes after.
"""

import argparse
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

from pipeline import bare
from pipeline.attacks import suite
from pipeline.cell import Cell
from pipeline.errors import UserError
from pipeline.files import digest, digest_file, read_json, write_json
from pipeline.verdicts import Verdicts
from stages import attack, train
from stages.common import run_folder, run_stage, verdict_file

STEPS = ("train", "attack")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.node", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write the job file of params.yaml")
    run = commands.add_parser("run", help="train and attack the cells of a job file")
    for command in (write, run):
        command.add_argument("job", type=Path)
    run.add_argument("--method", help="this method alone (default: every one of the job)")
    run.add_argument("--seed", type=int, help="this seed alone (default: every one of the job)")
    run.add_argument("--only", choices=STEPS, help="do not attack, or attack what is trained (default: both)")
    parsed = parser.parse_args(arguments)
    if parsed.command == "write":
        _write(parsed.job)
    else:
        _run(bare.load(parsed.job), parsed.method, parsed.seed, parsed.only)


def is_trained(cell: Cell) -> bool:
    """Whether the run folder of this very cell is complete: metrics.json is written last."""
    folder = run_folder(cell.method, cell.seed)
    if not all((folder / name).exists() for name in ("model.safetensors", "run.json", "metrics.json")):
        return False
    return read_json(folder / "run.json")["key"] == digest(cell.description())


def is_attacked(cell: Cell) -> bool:
    """Whether there is a verdict table of this cell's checkpoint with all attacks of the job, as it has them."""
    file, checkpoint = verdict_file(cell.method, cell.seed), run_folder(cell.method, cell.seed) / "model.safetensors"
    if not (file.exists() and file.with_suffix(".json").exists() and is_trained(cell)):
        return False
    table = Verdicts.load(file)
    wanted = {name: suite.said(cell.params, name) for name in suite.attacks(cell.params.evaluation)}
    said = dict(zip(table.attacks, table.settings, strict=True))
    return table.checkpoint == digest_file(checkpoint) and said == wanted


def _write(file: Path) -> None:
    from pipeline import params  # checked by pydantic, which a bare node lacks

    write_json(file, bare.job(params.load()))
    print(f"{file}: copy it to the node with pipeline/, stages/, plugins/ and the data, then run it there")


def _run(job: bare.Job, method: str | None, seed: int | None, only: str | None) -> None:
    for name, wanted, there in (("method", method, job.matrix.methods), ("seed", seed, job.matrix.seeds)):
        if wanted is not None and wanted not in there:
            raise UserError(f"--{name} {wanted}: not in the job; there are: {', '.join(map(str, there))}")
    if only != "train":
        _check_attacks(job)
    methods = job.matrix.methods if method is None else [method]
    seeds = job.matrix.seeds if seed is None else [seed]
    for one, number in itertools.product(methods, seeds):
        cell = Cell(job, one, number)
        if only != "attack" and not is_trained(cell):
            train.train(job, one, number)
        if only != "train" and not is_attacked(cell):
            attack.attack(job, one, number)


def _check_attacks(job: bare.Job) -> None:
    """Refuse what could not be attacked after all the training."""
    missing = importlib.util.find_spec("pyautoattack") is None
    named = [name for name, attack in job.evaluation.attacks.items() if attack.family == "autoattack"]
    if missing and named:
        raise UserError(
            f"evaluation.attacks.{named[0]}: family autoattack needs the package pyautoattack, which is not installed"
            " here; install it, or leave the attack out at home, or train alone (--only train) and attack at home"
        )


if __name__ == "__main__":
    run_stage(main)
