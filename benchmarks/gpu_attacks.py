"""Attacks on a GPU: PGD-100 as released and as ours, and ways to run one input gradient."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import evaluation, timing
from benchmarks.gpu_steps import Subject, as_installed, classifier
from benchmarks.reference import Reference
from pipeline.ascent import Inner, frozen, input_gradient
from pipeline.attacks.catalogue import Attack
from pipeline.losses import cross_entropy

STEP_SIZE = 2 / 255
RELEASED_BATCH = 200  # of the released evaluation
LARGE = 5  # our batch is as many times larger in the variant "large": the pipeline's is free


def pgd(
    subject: Subject, device: torch.device, reference: Reference | None, steps: int, batch: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds an image of PGD judged on its last iterate, and how many times faster ours is."""
    runs: dict[str, tuple[Callable[[], None], int]] = {}
    if reference is not None:
        images = subject.at(batch).examples(device)
        theirs = evaluation.Released(reference, getattr(reference, subject.theirs)(), images, steps, STEP_SIZE)
        runs["released"] = (_as_installed(theirs), batch)
    model = classifier(subject.at(batch), device).eval()
    for name, precision, count in (
        ("fp32", "fp32", batch),
        ("bf16", "bf16", batch),
        ("bf16 large", "bf16", LARGE * batch),
    ):
        images = subject.at(count).examples(device)
        attack = Attack(cross_entropy, steps, STEP_SIZE, random_start=True)
        runs[name] = (evaluation.Ours(model, images, attack, Inner(precision=precision)), count)
    seconds = timing.interleaved({name: run for name, (run, _) in runs.items()}, rounds, device, warmup=1)
    each = {name: [value / runs[name][1] for value in values] for name, values in seconds.items()}
    row: dict[str, Any] = {name: {"ms_per_image": 1e3 * statistics.median(values)} for name, values in each.items()}
    for name in row:
        if reference is not None and name != "released":
            row[name]["times_faster"] = timing.ratio(each["released"], each[name])
    return row


def gradients(subject: Subject, device: torch.device, batch: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Milliseconds of one input gradient in bf16: called as the pipeline does, captured as a CUDA graph, compiled.

    What fails says why, in the place of its time.
    """
    images = subject.at(batch).examples(device)
    row: dict[str, Any] = {}
    with frozen(classifier(subject.at(batch), device), Inner(precision="bf16")) as fast:

        def called(network: torch.nn.Module = fast) -> torch.Tensor:
            return input_gradient(network, images.x, images.y, cross_entropy)

        ways: dict[str, Callable[[], Callable[[], object]]] = {"called": lambda: called}
        if device.type == "cuda":
            ways["graph"] = lambda: _captured(called)
        if compiled:
            ways["compiled"] = lambda: _compiled(called, fast)
        for name, prepare in ways.items():
            with as_installed(tf32=False):  # compilers and captures know no deterministic mode
                try:
                    seconds = timing.interleaved({name: prepare()}, rounds, device, warmup=3)
                    row[name] = 1e3 * statistics.median(seconds[name])
                except RuntimeError as error:
                    row[name] = f"failed: {str(error).splitlines()[0]}"
    return row


def _captured(work: Callable[[], object]) -> Callable[[], object]:
    """The same kernels again, launched by the driver; warmed up on a stream of its own, as captures demand."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _compiled(work: Callable[..., object], network: torch.nn.Module) -> Callable[[], object]:
    compiled = torch.compile(network)
    return lambda: work(compiled)


def _as_installed(run: Callable[[], object]) -> Callable[[], None]:
    def inside() -> None:
        with as_installed():
            run()

    return inside
