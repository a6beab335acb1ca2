"""AutoAttack, an ensemble without step sizes to choose: the usual standard of comparison between robust models."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.perturbation import L2, Linf, PerturbationSet
from pipeline.seeding import Noise

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
TARGETS = 9  # wrong classes that apgd-t and fab-t aim at


@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack (Croce and Hein, ICML 2020) by the library `pyautoattack`, in its version "standard".

    One run of Auto-PGD on the cross-entropy; one of Auto-PGD on the targeted DLR loss, and one of FAB (Croce
    and Hein, ICML 2020), for each of the 9 wrong classes that the model finds likeliest, or for all of them if
    there are fewer; one of Square (Andriushchenko et al., ECCV 2020). Each run gets the examples that hold.
    As in the library, every iterate counts that lies in the set. Unlike there, an example is broken by the
    first of them, and a run ends when no example of the batch holds any longer.

    `steps`: iterations of Auto-PGD and FAB a run (standard: 100). `queries`: iterations of Square, a model
    evaluation each (standard: 5000). `parts`: which of `PARTS` run, in this order.

    An example's starts and signs are its own numbers, and those that the library draws for a whole batch
    (where Square puts its squares) are the same for all batches: the others do not matter to an example.
    Auto-PGD and Square compute in the format of the images, FAB in float32.
    """

    steps: int
    queries: int
    parts: tuple[str, ...] = PARTS

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Images for x (N, C, H, W) in [0, 1]: the first found that breaks the example, or the image itself.

        So the image is as it was where it is misclassified anyway, and where the whole attack fails. Raises
        `UserError` in a set other than Linf and L2, for apgd-t with fewer than 4 classes, whose loss
        compares the four greatest logits, and for square in L2 on images less than 5 pixels high.
        """
        AllBroken, Apgd, Fab, Search, Square = _library()
        norm = _norm(perturbations)
        if not len(x):
            return x
        search = Search(model, x, labels, perturbations)
        classes = search.logits.shape[1]
        self._check(norm, classes, x.shape[2])
        for part, rank in self._runs(classes):
            if not search.begin():
                break
            numbers = noise.branch(part).branch(rank)
            with contextlib.suppress(AllBroken):
                if part == "square":
                    Square(search, norm, self.queries, numbers).run()
                elif part == "fab-t":
                    Fab(search, norm, self.steps, rank).run()
                else:
                    Apgd(search, norm, self.steps, rank, numbers).run()
        return search.found

    def _runs(self, classes: int) -> Iterator[tuple[str, int]]:
        """Every run's part and the rank of its target: 2 is the likeliest wrong class; 1, the label, is no target."""
        for part in self.parts:
            for rank in range(2, min(TARGETS, classes - 1) + 2) if part.endswith("-t") else [1]:
                yield part, rank

    def _check(self, norm: str, classes: int, height: int) -> None:
        if "apgd-t" in self.parts and classes < 4:
            raise UserError(f"family autoattack: its part apgd-t needs at least 4 classes, not {classes}; leave it out")
        if "square" in self.parts and norm == "L2" and height < 5:
            raise UserError(
                f"family autoattack: its part square in l2 needs images at least 5 pixels high, not {height}"
            )


def _library() -> tuple[type, ...]:
    """What needs the library, which a node that runs other attacks alone may lack."""
    try:
        from pipeline.attacks.auto_parts import AllBroken, Apgd, Fab, Search, Square
    except ModuleNotFoundError as error:
        raise UserError(
            f"family autoattack: needs the package {(error.name or '').split('.')[0]}, which is not installed here;"
            " install it, or leave the attack out of evaluation.attacks"
        ) from None
    return AllBroken, Apgd, Fab, Search, Square


def _norm(perturbations: PerturbationSet) -> str:
    """The library's name of the set's norm."""
    for kind, name in ((Linf, "Linf"), (L2, "L2")):
        if isinstance(perturbations, kind):
            return name
    raise UserError(f"family autoattack: attacks in the sets linf and l2 alone, not in {type(perturbations).__name__}")
