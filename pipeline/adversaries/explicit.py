"""ADT_EXP: an explicit distribution for each image, found by an inner optimisation."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.adversaries.base import Adversary, Samples
from pipeline.ascent import frozen
from pipeline.distribution import Search, spread
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Explicit as Settings


class Explicit(Adversary):
    """Training on p(delta) = squash(mu + sigma r), r ~ N(0, I), sigma = softplus(rho), found per image.

    The inner loop, with T steps of k samples, is that of `Search`, whose words for `accumulate`
    and `damping` hold here too. The training samples are fresh draws from the distribution
    found, `outer_samples` an image.
    """

    settings: "Settings"

    @property
    def gradient_evaluations(self) -> int:
        """T k."""
        return self.settings.steps * self.settings.samples

    @property
    def training_evaluations(self) -> int:
        """One a training sample."""
        return self.settings.outer_samples

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """`outer_samples` samples an image from the distribution after T steps."""
        mean, raw_scale = self.fit(model, x, labels, noise)
        images, entropy = self.draw(x, mean, raw_scale, noise)
        return Samples(images, stats={"entropy": entropy.mean()})

    def draw(self, x: Tensor, mean: Tensor, raw_scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """M = `outer_samples` perturbed images an image (M N, C, H, W), and the entropy term of each (M N,)."""
        count = self.settings.outer_samples
        draws = noise.normal(count, *x.shape[1:], draw=self.settings.steps)
        return spread(self.perturbations, x, mean, raw_scale, draws)

    def fit(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The parameters (mu, rho) of every image's distribution, each (N, C, H, W)."""
        s = self.settings
        search = Search(s.lam, s.steps, s.samples, s.inner_lr, s.initial_rho, s.accumulate, s.damping)
        singly = self.inner.batch_norm == "train"
        with frozen(model, self.inner) as fast:
            return search.fit(fast, x, labels, self.perturbations, noise, singly)
