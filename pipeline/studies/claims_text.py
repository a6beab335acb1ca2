"""The judged claims of the lambda study for people: a table of verdicts, and what was measured behind each."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pipeline.comparison.statistics import FEWEST
from pipeline.labels import method_label
from pipeline.studies.claims import CLAIMS, REFERENCE, RISES, UNDECIDED

_NAMES = {
    "entropy": "entropy, nats a dimension",
    "code_length": "code length of z, nats a dimension",
    "diversity": "variance over samples of a pixel of delta / eps",
    "adversarial_loss": "cross-entropy of the samples",
}


def markdown(data: str, judged: Mapping[str, Any], epochs: int, images: int) -> str:
    """The content of claims.md: `data` as people call them, `epochs` of every training, `images` of the test set."""
    methods = list(dict.fromkeys(claim["method"] for claim in judged["claims"]))
    verdicts = {(claim["method"], claim["claim"]): claim["verdict"] for claim in judged["claims"]}
    table = [
        [f"{number}. {CLAIMS[name]}", *(verdicts[method, name] for method in methods)]
        for number, name in enumerate(CLAIMS, 1)
    ]
    header = ["claim", *map(method_label, methods)]
    parts = ["# Lambda: which claims hold on these data", *_definitions(data, judged, epochs, images)]
    parts.append("\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *table]))
    for method in methods:
        parts.append(f"## {method_label(method)}")
        parts += [_claim(claim) for claim in judged["claims"] if claim["method"] == method]
    return "\n\n".join(parts) + "\n"


def _definitions(data: str, judged: Mapping[str, Any], epochs: int, images: int) -> list[str]:
    seeds = judged["seeds"]
    level = f"{100 * judged['confidence']:.4g} %"
    intervals = (
        f"In brackets: {level} Student's t intervals of the mean over seeds of differences paired by seed. They speak"
        " of further seeds judged on these very images, and each stands for itself, uncorrected for their number."
        if len(seeds) >= FEWEST
        else f"With fewer than {FEWEST} seeds there are no intervals, and nothing is decided."
    )
    return [
        f"Every model was trained for {epochs} epoch(s), seed(s) {', '.join(map(str, seeds))}, and judged on {images}"
        f" test images of {data}; robust accuracy is that under {judged['attack']} and that in the worst case over the"
        " attacks of the study. Samples are drawn for test images from the adversary that a model was trained with."
        f" {intervals}",
        "A difference is *supported* if its interval lies wholly on the claimed side of 0, *not supported* if it lies"
        " wholly on the other side, *undecided* otherwise. A rise or fall along lambda is supported if the change from"
        " the first lambda to the last is and every step between neighbours goes the same way, and not supported if"
        " the change or a step is not. Equality is refuted by an interval without 0 and cannot be supported, because"
        " not being told apart proves nothing. A claim is supported if all its parts are, and not supported if one is"
        " not.",
        "The moderate lambda is the one above 0 with the highest robust accuracy on validation images, mean over seeds;"
        " test images choose nothing.",
    ]


def _claim(claim: Mapping[str, Any]) -> str:
    """One claim about one method: its verdict, and a line a part."""
    number = list(CLAIMS).index(claim["claim"]) + 1
    said = [f"**{number}. {CLAIMS[claim['claim']]}: {claim['verdict']}.**{_choice(claim)}", ""]
    for part in claim["parts"]:
        told = _trend(part) if "change" in part else _difference(claim, part)
        said.append(f"- {told}: {part['verdict']}.")
    if any(part["quantity"] == "code_length" for part in claim["parts"]):
        said += ["", "Lambda 0 leaves the encoder untrained, so there is no code length."]
    bounded = any(part.get("low") is not None for part in claim["parts"])
    if claim["claim"] == "degenerate" and claim["verdict"] == UNDECIDED and bounded:
        said += ["", "Not told apart, which is no proof of equality: any difference inside an interval is compatible."]
    return "\n".join(said)


def _choice(claim: Mapping[str, Any]) -> str:
    if claim["claim"] != "gain":
        return ""
    found = claim["chosen"]
    own, zero = found["val_robust"], found["val_robust_lambda_0"]
    order = "higher than" if own > zero else "no higher than"
    return (
        f" Chosen on validation images: {_point(found['lam'], found['tau'])}, robust accuracy {own:.2f} % there,"
        f" {order} the {zero:.2f} % of lambda 0."
    )


def _difference(claim: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """A difference: of what, between what, and how much."""
    chosen = claim.get("chosen", {"lam": 0.0, "tau": None} if claim["claim"] == "degenerate" else part)
    other = "lambda 0" if claim["claim"] in ("gain", "harmless") else method_label(REFERENCE)
    between = f"{_point(chosen['lam'], chosen['tau'])} minus {other}"
    if part["quantity"] in _NAMES:
        return f"{_NAMES[part['quantity']]}, {between}: {part['mean']:+.3g} {_interval(part, '+.3g')}"
    return f"{part['quantity']} accuracy, {between}: {part['mean']:+.2f} points {_interval(part, '+.2f')}"


def _trend(part: Mapping[str, Any]) -> str:
    """A quantity along lambda: means, the whole change, steps that go the other way, and the rank correlation."""
    where = "" if part["tau"] is None else f" at tau {part['tau']:g}"
    name = f"{_NAMES[part['quantity']]}{where}"
    means = ", ".join(f"{mean:.4g}" for mean in part["means"])
    lambdas = ", ".join(f"{lam:g}" for lam in part["lambdas"])
    if len(part["lambdas"]) == 1:
        return f"{name}: {means} at lambda {lambdas}, the only one that has a value"
    wrong = [
        f"{a:g} to {b:g} {step['mean']:+.2g} {_interval(step, '+.2g')}"
        for (a, b), step in zip(pairwise(part["lambdas"]), part["steps"], strict=True)
        if step["mean"] * part["claimed"] <= 0
    ]
    direction = "rises" if part["claimed"] == RISES else "falls"
    steps = f"; but not from {'; '.join(wrong)}" if wrong else f"; it {direction} at every step"
    rank = "" if part["kendall"] is None else f"; Kendall's rank correlation {part['kendall']:.2f} over single runs"
    change = part["change"]
    return (
        f"{name}: {means} for lambda {lambdas}; last minus first {change['mean']:+.3g} {_interval(change, '+.3g')}"
        f"{steps}{rank}"
    )


def _interval(part: Mapping[str, Any], digits: str) -> str:
    if part["low"] is not None:
        return f"[{part['low']:{digits}}, {part['high']:{digits}}]"
    return "(no interval: too few seeds)" if len(part["seeds"]) < FEWEST else "(no interval: all seeds differ alike)"


def _point(lam: float, tau: float | None) -> str:
    return f"lambda {lam:g}" + ("" if tau is None else f" with tau {tau:g}")
