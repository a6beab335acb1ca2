"""What a cell asks of a Ray cluster, and whether any of its nodes has that."""

from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.graph import Graph
from pipeline.needs import PIPELINE_FILE, needs
from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

GIB = 2**30
Resources = dict[str, float]  # "CPU", "GPU" and "memory" (bytes), as Ray calls them


def nodes() -> list[Resources]:
    """What the live nodes of the cluster have, busy or not."""
    import ray

    kept = ("CPU", "GPU", "memory")
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{name: resources.get(name, 0) for name in kept} for resources in alive]


def requests(p: "Params", graph: Graph, there: list[Resources]) -> dict[str, Resources]:
    """What each cell of `graph` asks for; `UserError` for one that no node of the cluster could ever run.

    GPUs only where params.yaml allows them and the cluster has some, and at most as many as the largest node has.
    """
    stages = read_yaml(PIPELINE_FILE)["stages"]
    most = max((node["GPU"] for node in there), default=0)
    if p.runtime.device == "cuda" and not most:
        raise UserError("params.yaml: runtime.device: cuda, but no node of the Ray cluster has a GPU")
    on_gpus = most > 0 and p.runtime.device in ("auto", "cuda")
    asked = {}
    for stage in graph:
        need = needs(p, stage, stages)
        gpus = min(need.devices, most) if on_gpus else 0
        asked[stage] = {"CPU": need.cores, "GPU": gpus, "memory": need.memory_gib * GIB}
        if not fits(asked[stage], there):
            raise UserError(
                f"{stage}: needs {_said(asked[stage])} on one node; the largest node has {_said(_largest(there))}"
                " (params.yaml: cluster.memory_gib, runtime.threads, train.devices, evaluation.devices)"
            )
    return asked


def fits(asked: Resources, there: list[Resources]) -> bool:
    """Whether one of the nodes could run it, were it idle."""
    return any(all(node[name] >= amount for name, amount in asked.items()) for node in there)


def options(asked: Resources) -> dict[str, Any]:
    """The same as options of a Ray task."""
    return {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "memory": int(asked["memory"])}


def _largest(there: list[Resources]) -> Resources:
    return max(there, key=lambda node: (node["GPU"], node["CPU"], node["memory"]))


def _said(resources: Resources) -> str:
    gpus = f"{resources['GPU']:g} GPUs, " if resources["GPU"] else ""
    return f"{gpus}{resources['CPU']:g} cores and {resources['memory'] / GIB:.2f} GiB"
