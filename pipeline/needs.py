"""What a cell asks of the machine that runs it: devices, cores, main memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

PIPELINE_FILE = Path("dvc.yaml")


@dataclass(frozen=True)
class Needs:
    """`devices`: GPUs, where there are some and params.yaml allows them; 0: the cell computes on no device.

    `cores`: where there are no GPUs as many threads as it then uses. `memory_gib`: main memory.
    """

    devices: int
    cores: int
    memory_gib: float


def needs(p: "Params", stage: str, stages: dict[str, Any] | None = None) -> Needs:
    """What the cell `stage` ("train@at_pgd-0", "compare") needs; `stages`: those of dvc.yaml, if at hand.

    A stage that has the parameter `runtime` computes on a device. Trainings take `train.devices` of them and
    attack tables `evaluation.devices`.
    """
    stages = stages if stages is not None else read_yaml(PIPELINE_FILE)["stages"]
    kind = stage.partition("@")[0]
    many = {"train": p.train.devices, "attack": p.evaluation.devices}
    devices = many.get(kind, 1) if "runtime" in stages[kind].get("params", []) else 0
    return Needs(devices, max(1, devices * p.runtime.threads), max(1, devices) * p.cluster.memory_gib)
