"""`python -m pipeline COMMAND`: presets, parallel reproduction, attacks on a file, MLflow, and the receipt."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a `UserError` becomes one line on stderr and exit status 2."""
    parsed = _parser().parse_args(arguments)
    try:
        sys.exit(parsed.run(parsed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    repro = commands.add_parser("repro", help="dvc repro with cells in parallel, then MLflow and the results")
    repro.add_argument("--jobs", type=int, help="cells at once (default: GPUs, or cores / threads)")
    repro.add_argument("--force", action="store_true", help="recompute everything, without caches")
    repro.set_defaults(run=_repro)

    check = commands.add_parser("check", help="check params.yaml")
    check.set_defaults(run=_check)

    preset = commands.add_parser("preset", help="parameter sets").add_subparsers(required=True, metavar="ACTION")
    listing = preset.add_parser("list", help="name and describe every preset")
    listing.set_defaults(run=_preset_list)
    use = preset.add_parser("use", help="write params.yaml from a preset")
    use.add_argument("name")
    use.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, repeatable")
    use.set_defaults(run=_preset_use)
    diff = preset.add_parser("diff", help="how params.yaml differs from its preset, or from another")
    diff.add_argument("name", nargs="?")
    diff.set_defaults(run=_preset_diff)

    attack = commands.add_parser("attack", help="attack a checkpoint, from here or from elsewhere")
    attack.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help=".safetensors, or the authors' .pt"
    )
    attack.add_argument("--attack", action="append", default=[], metavar="NAME", help="repeatable (default: all)")
    attack.add_argument("--output", type=Path, metavar="FILE", help="write the verdict table as .npz")
    attack.set_defaults(run=_attack)

    track = commands.add_parser("track", help="complete MLflow from the files of the workspace")
    track.add_argument("--follow", action="store_true", help="repeat while stages run")
    track.set_defaults(run=_track)

    ui = commands.add_parser("ui", help="complete MLflow, then serve its pages")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)

    verify = commands.add_parser("verify", help="hold the workspace against the committed dvc.lock")
    verify.add_argument("--record", action="store_true", help="record this machine as the maker of dvc.lock")
    verify.set_defaults(run=_verify)
    return parser


def _check(_: argparse.Namespace) -> int:
    from pipeline import params

    p = params.load()
    print(f"params.yaml is valid: preset {p.preset}, {len(p.matrix.methods)} methods x {len(p.matrix.seeds)} seeds")
    return 0


def _preset_list(_: argparse.Namespace) -> int:
    from pipeline import presets

    for name in presets.names():
        print(f"{name:20} {presets.summary(name)}")
    return 0


def _preset_use(parsed: argparse.Namespace) -> int:
    from pipeline import params, presets

    presets.use(parsed.name, parsed.set, params.PARAMS_FILE)
    print(f"params.yaml: preset {parsed.name}" + "".join(f", {item}" for item in parsed.set))
    return 0


def _preset_diff(parsed: argparse.Namespace) -> int:
    from pipeline import params, presets

    lines = presets.differences(params.PARAMS_FILE, parsed.name)
    print("\n".join(lines) if lines else "no difference")
    return 0


def _repro(parsed: argparse.Namespace) -> int:
    from pipeline import params, repro

    return repro.reproduce(params.load(), parsed.jobs, parsed.force)


def _attack(parsed: argparse.Namespace) -> int:
    from pipeline import params, rejudge

    verdicts = rejudge.judge(params.load(), parsed.checkpoint, parsed.attack)
    for name, accuracy in verdicts.accuracies().items():
        print(f"{name:12} {100 * accuracy:5.1f} % of {len(verdicts.labels)} test images")
    if parsed.output:
        verdicts.save(parsed.output)
    return 0


def _track(parsed: argparse.Namespace) -> int:
    from pipeline import tracking

    if parsed.follow:
        tracking.follow()
    else:
        print(tracking.sync())
    return 0


def _ui(parsed: argparse.Namespace) -> int:
    from pipeline import tracking

    tracking.serve(parsed.port)
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from pipeline import params, verify

    if parsed.record:
        verify.record(params.load())
        print(f"{verify.RECEIPT}: this machine is recorded as the maker of dvc.lock")
        return 0
    return verify.verify(params.load(), Path())
