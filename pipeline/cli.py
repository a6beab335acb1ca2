"""`python -m pipeline COMMAND`: presets, parallel reproduction, attacks on a file, MLflow, and the receipt."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a `UserError` becomes one line on stderr and exit status 2."""
    parsed = parser().parse_args(arguments)
    try:
        sys.exit(parsed.run(parsed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    """What `python -m pipeline` understands."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    repro = commands.add_parser("repro", help="dvc repro with cells in parallel, then MLflow and the results")
    repro.add_argument("--jobs", type=int, help="cells at once (default: GPUs, or cores / threads)")
    repro.add_argument("--force", action="store_true", help="recompute everything, without caches")
    repro.add_argument("--ray", metavar="ADDRESS", help="cells on the Ray cluster there (auto, or HOST:PORT)")
    repro.add_argument("--remote", metavar="NAME", help="with --ray: the DVC remote through which results travel")
    repro.set_defaults(run=_repro)

    cells = commands.add_parser("cells", help="list cells as JSON for other schedulers, or run a share of them")
    cells.add_argument("--level", type=int, metavar="N", help="the cells that can run once those of level N-1 are done")
    cells.add_argument("--stage", metavar="NAME", help="every cell of a stage, or one cell")
    cells.add_argument("--all", action="store_true", help="list what is up to date, too")
    cells.add_argument("--shard", metavar="I/N", help="run every N-th of them, from the I-th, unless up to date")
    cells.add_argument("--jobs", type=int, help="with --shard: cells at once, as for repro")
    cells.set_defaults(run=_cells)

    push = commands.add_parser("push", help="push results so that other machines restore them without dvc.lock")
    push.add_argument("stages", nargs="*", metavar="STAGE", help="a stage or cell (default: all that are up to date)")
    push.add_argument("--remote", required=True, metavar="NAME", help="the DVC remote")
    push.set_defaults(run=_push)

    check = commands.add_parser("check", help="check params.yaml")
    check.set_defaults(run=_check)

    preset = commands.add_parser("preset", help="parameter sets").add_subparsers(required=True, metavar="ACTION")
    listing = preset.add_parser("list", help="name, describe and price every preset")
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

    health = commands.add_parser("health", help="every health check on a checkpoint; status 1 if one fails")
    health.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="as for attack")
    health.set_defaults(run=_health)

    conformance = commands.add_parser("conformance", help="put attacks, your own ones too, to the conformance suite")
    conformance.add_argument("--attack", action="append", default=[], metavar="NAME", help="repeatable (default: all)")
    conformance.set_defaults(run=_conformance)

    comparison = commands.add_parser("compare", help="the comparison with seconds and devices; or of any runs")
    comparison.add_argument(
        "--runs", nargs="+", metavar="PATTERN", help="run folders, mlflow:RUN_ID or mlflow:EXPERIMENT/NAME"
    )
    comparison.add_argument("--reference", metavar="ROW", help="what the others are paired with, with --runs")
    comparison.add_argument("--allow-mixed", action="store_true", help="compare unlike runs all the same")
    comparison.set_defaults(run=_compare)

    search = commands.add_parser("search", help="the search of hyper-parameters").add_subparsers(
        required=True, metavar="ACTION"
    )
    shown = search.add_parser("show", help="the trials, and the front of accuracy and cost")
    shown.set_defaults(run=_search_show)
    adopted = search.add_parser("adopt", help="write a trial's parameters into params.yaml, after showing the diff")
    adopted.add_argument("--trial", type=int, metavar="NUMBER", help="default: the chosen one")
    adopted.add_argument("--yes", action="store_true", help="do not ask")
    adopted.set_defaults(run=_search_adopt)
    worker = search.add_parser("work", help="be one worker of the study in the database that ADT_STUDY names")
    worker.set_defaults(run=_search_work)

    track = commands.add_parser("track", help="complete MLflow from the files of the workspace")
    track.add_argument("--follow", action="store_true", help="repeat while stages run")
    track.set_defaults(run=_track)

    register = commands.add_parser("register", help="register a method's best run by validation as champion in MLflow")
    register.add_argument("method")
    register.add_argument("--name", help="name in the registry (default: PRESET-METHOD)")
    register.set_defaults(run=_register)

    load = commands.add_parser("load", help="fetch a model from MLflow and say what it is")
    load.add_argument("uri", metavar="URI", help="models:/NAME@champion, models:/NAME/VERSION or models:/ID")
    load.add_argument("--output", type=Path, metavar="FILE", help="keep the weights as .safetensors, for `attack`")
    load.set_defaults(run=_load)

    ui = commands.add_parser("ui", help="complete MLflow, then serve its pages")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)

    verify = commands.add_parser("verify", help="hold the workspace against what a commit recorded")
    verify.add_argument("--against", default="HEAD", metavar="REV", help="the commit (default: HEAD)")
    verify.add_argument("--markdown", type=Path, metavar="FILE", help="write the findings as Markdown, too")
    first = verify.add_mutually_exclusive_group()
    first.add_argument("--rerun", action="store_true", help="recompute everything first, without caches")
    first.add_argument("--pull", action="store_true", help="first fetch from the DVC remote, run what it lacks")
    first.add_argument("--record", action="store_true", help="only record this machine as the maker of dvc.lock")
    verify.set_defaults(run=_verify)

    provenance = commands.add_parser("provenance", help="from a file or a table cell back to what made it")
    provenance.add_argument("target", metavar="FILE|METHOD|NUMBER", help="an output, a method, or an accuracy")
    provenance.add_argument("metric", nargs="?", metavar="METRIC", help="after METHOD: natural, an attack, worst-case")
    provenance.set_defaults(run=_provenance)
    return parser


def _cells(parsed: argparse.Namespace) -> int:
    from pipeline import cells, params

    if parsed.shard is not None:
        return cells.run_share(params.load(), parsed.level, parsed.stage, parsed.shard, parsed.jobs)
    print(cells.listing(params.load(), parsed.level, parsed.stage, parsed.all))
    return 0


def _check(_: argparse.Namespace) -> int:
    from pipeline import params

    p = params.load()
    print(f"params.yaml is valid: preset {p.preset}, {len(p.matrix.methods)} methods x {len(p.matrix.seeds)} seeds")
    return 0


def _preset_list(_: argparse.Namespace) -> int:
    from pipeline import presets

    for name in presets.names():
        cost = presets.cost(name)
        print(f"{name:22} {presets.summary(name)}" + (f" Cost: {cost}." if cost else ""))
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

    if parsed.ray is None and parsed.remote is None:
        return repro.reproduce(params.load(), parsed.jobs, parsed.force)
    if parsed.ray is None:
        raise UserError("--remote: only with --ray; `python -m pipeline push` shares results without a cluster")
    if parsed.force:
        raise UserError("--force: not with --ray; results of the same commit are never computed twice there")
    from pipeline.cluster import driver

    status = driver.reproduce(params.load(), parsed.ray, parsed.remote, parsed.jobs)
    if status == 0:
        repro.conclude()
    return status


def _push(parsed: argparse.Namespace) -> int:
    from pipeline import graph, sharing

    graph.find_dvc()
    pushed = sharing.push(parsed.remote, parsed.stages)
    print(f"{parsed.remote} has {len(pushed)} stages: `dvc repro --pull` restores them, also without this dvc.lock")
    return 0


def _attack(parsed: argparse.Namespace) -> int:
    from pipeline import params, rejudge

    verdicts = rejudge.judge(params.load(), parsed.checkpoint, parsed.attack)
    for name, accuracy in verdicts.accuracies().items():
        print(f"{name:12} {100 * accuracy:5.1f} % of {len(verdicts.labels)} test images")
    if parsed.output:
        verdicts.save(parsed.output)
    return 0


def _health(parsed: argparse.Namespace) -> int:
    from pipeline import params, rejudge
    from pipeline.health import report

    found = rejudge.health(params.load(), parsed.checkpoint)
    print("\n".join(report.lines(found.checks)))
    return int(bool(found.failed))


def _conformance(parsed: argparse.Namespace) -> int:
    from pipeline import params, rejudge

    failed = False
    for name, question, problem in rejudge.conformance(params.load(), parsed.attack):
        failed |= problem is not None
        print(f"{name:12} {question:42} {'yes' if problem is None else 'NO: ' + problem}", flush=True)
    return int(failed)


def _compare(parsed: argparse.Namespace) -> int:
    from pipeline import params
    from pipeline.comparison import side_by_side

    p = params.load()
    if parsed.runs is None:
        print(side_by_side.workspace(p))
    else:
        print(side_by_side.chosen(p, parsed.runs, parsed.reference, parsed.allow_mixed))
    return 0


def _search_show(_: argparse.Namespace) -> int:
    from pipeline import adopt

    print("\n".join(adopt.shown()))
    return 0


def _search_adopt(parsed: argparse.Namespace) -> int:
    from pipeline import adopt

    return adopt.adopt(parsed.trial, parsed.yes)


def _search_work(_: argparse.Namespace) -> int:
    from pipeline import params
    from pipeline.search import schedule

    print(f"{schedule.work(params.load())} trials are finished; `dvc repro search` writes the table")
    return 0


def _track(parsed: argparse.Namespace) -> int:
    from pipeline import tracking

    if parsed.follow:
        tracking.follow()
    else:
        print(tracking.sync())
    return 0


def _register(parsed: argparse.Namespace) -> int:
    from pipeline import tracking

    print(tracking.register(parsed.method, parsed.name))
    return 0


def _load(parsed: argparse.Namespace) -> int:
    from pipeline import tracking

    _, told = tracking.load(parsed.uri, parsed.output)
    print("\n".join(tracking.describe(told)))
    return 0


def _ui(parsed: argparse.Namespace) -> int:
    from pipeline import tracking

    tracking.serve(parsed.port)
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from pipeline import params, repro
    from pipeline.reproduction import receipt, verify

    p = params.load()
    if parsed.record:
        receipt.record(p)
        print(f"{receipt.RECEIPT}: this machine is recorded as the maker of dvc.lock")
        return 0
    remake = verify.pull if parsed.pull else (lambda: repro.reproduce(p, None, force=True)) if parsed.rerun else None
    return verify.verify(p, Path(), parsed.against, remake, parsed.markdown)


def _provenance(parsed: argparse.Namespace) -> int:
    from pipeline.reproduction import provenance

    print("\n".join(provenance.trace(parsed.target, parsed.metric)))
    return 0
