"""One model examined from beginning to end: probes, the white-box attacks of `evaluation`, and the checks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.attacks import suite
from pipeline.data.store import Split
from pipeline.health import checks
from pipeline.health.probes import Subject, probe

if TYPE_CHECKING:
    from pipeline.params import Params


@dataclass(frozen=True)
class Finding:
    """What was measured, the accuracies under attack (none where the forward pass is random), and the checks."""

    probe: dict[str, Any]
    accuracies: dict[str, float]
    checks: dict[str, dict[str, Any]]

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for name, verdict in self.checks.items() if verdict["passed"] is False]


def examine(model: nn.Module, test: Split, p: "Params") -> Finding:
    """Examine a model that no stage made, on the first `health.images` of `test`; nothing is transferred to it."""
    images = test.head(p.health.images)
    subject = Subject(model, images, p)
    measured = probe(subject)
    if measured["randomness"]:
        return Finding(measured, {}, checks.judge(checks.evidence(measured, {}, {}, None, set())))
    seeing = [name for name, attack in p.evaluation.attacks.items() if checks.sees_gradients(attack)]
    table = suite.verdicts(p.evaluation, seeing, model, images, subject.perturbations())
    evidence = checks.evidence(measured, p.evaluation.attacks, p.health.attacks, table, set())
    return Finding(measured, table.accuracies(), checks.judge(evidence))
