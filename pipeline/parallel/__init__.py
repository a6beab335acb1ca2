"""One training, or one evaluation, over several processes: torch.distributed, and who is to blame when it stops."""

from pipeline.parallel.launch import evaluators, trainers
from pipeline.parallel.run import run
from pipeline.parallel.world import ALONE, World, joined

__all__ = ["ALONE", "World", "evaluators", "joined", "run", "trainers"]
