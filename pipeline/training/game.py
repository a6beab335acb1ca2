"""One batch of the game of classifier and adversary as a single module, and how processes share it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.adversaries import Adversary
from pipeline.adversaries.base import repeat
from pipeline.ascent import autocast
from pipeline.models.replicas import synchronised, with_replicas
from pipeline.parallel import World
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Train


class Game(nn.Module):
    """Samples, the classifier's loss on them and the adversary's penalty, in one forward pass.

    One module of both players, so that `DistributedDataParallel` sees one forward and one joint backward pass
    and averages the gradients of classifier, generator and encoder alike.
    """

    def __init__(self, model: nn.Module, adversary: Adversary, settings: "Train") -> None:
        super().__init__()
        self.model, self.adversary, self.settings = model, adversary, settings

    def forward(self, x: Tensor, labels: Tensor, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to differentiate, and the batch's statistics (detached), for x (N, C, H, W), labels (N,)."""
        samples = self.adversary(self.model, x, labels, noise)
        self.model.train()
        with autocast(x.device, self.settings.precision):
            loss, logits = self.adversary.loss(self.model, samples, x, labels, self.settings.label_smoothing)
        accuracy = (logits.argmax(1) == repeat(labels, logits)).float().mean()
        stats = {"train_loss": loss.detach(), "train_accuracy": accuracy} | samples.stats
        return (loss if samples.penalty is None else loss + samples.penalty), stats


def shared_out(game: Game, settings: "Train", world: World) -> nn.Module:
    """The game as this process plays it: batch norms as `settings` says, gradients averaged over `world`.

    The processes share `settings.devices` equal parts of a batch; batch norm per replica has statistics of
    each part, however many of them a process takes. Averaging gradients of equal parts gives that of the whole batch.
    """
    parts = settings.devices // world.size
    if settings.batch_norm == "replica" and settings.devices > 1:
        with_replicas(game, parts)
    if settings.batch_norm == "synchronised" and world.size > 1:
        for network in (game.model, game.adversary):
            synchronised(network)
    # Broadcasts the buffers of rank 0 before every forward pass; AT_PGD's adversary has no parameters.
    return DistributedDataParallel(game) if world.size > 1 else game


def even(batches: Sequence[Tensor], devices: int) -> list[Tensor]:
    """The batches of an epoch, each a multiple of `devices`: of the last one, images that are left over stay out.

    A last batch of one image a device stays out whole, unless it is the only one: batch norm would have nothing to
    normalise by.
    """
    *whole, last = batches
    last = last[: len(last) // devices * devices]
    return [*whole, last] if len(last) >= 2 * devices or not whole else whole
