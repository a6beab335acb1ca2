"""The sections `model` and `train`: the classifier and the loop that is the same for every method."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.base import Count, NonNegative, Positive, Section, Share


class Model(Section):
    """The classifier. Images in [0, 1] come in; normalisation happens inside."""

    name: Literal["small_cnn", "resnet18", "preact_resnet18", "wrn_28_10", "wrn_34_10"] = Field(
        description="architecture"
    )
    widths: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="for small_cnn: channels of each stage"
    )
    unshuffle: Count | None = Field(
        None, description="for small_cnn: fold blocks of this many pixels a side into channels; 1: no"
    )
    mean: list[float] | None = Field(None, description="for the others: subtracted from each channel; none: 0")
    std: list[Positive] | None = Field(None, description="for the others: each channel is divided by it; none: 1")

    @model_validator(mode="after")
    def _fits_name(self) -> "Model":
        small = self.name == "small_cnn"
        for key in ("widths", "unshuffle"):
            if (getattr(self, key) is not None) != small:
                raise ValueError(f"{self.name} {'needs' if small else 'takes no'} {key}")
        if small and (self.mean is not None or self.std is not None):
            raise ValueError("small_cnn takes no mean and std; it subtracts 0.5")
        if len(self.mean or []) != len(self.std or []):
            raise ValueError("mean and std go together, one number a channel each")
        return self


class Optimizer(Section):
    """SGD of the classifier."""

    lr: Positive = Field(description="peak learning rate")
    momentum: Share
    weight_decay: NonNegative


class Schedule(Section):
    """The learning rate over the training."""

    name: Literal["constant", "cosine", "one_cycle", "piecewise"]
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None, description="for piecewise: shares of the training after which the rate is multiplied by factor"
    )
    factor: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="for piecewise")
    warmup: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="for one_cycle: share of the training in which the rate climbs to its peak"
    )

    @model_validator(mode="after")
    def _fits_name(self) -> "Schedule":
        needed = {"piecewise": {"milestones", "factor"}, "one_cycle": {"warmup"}}.get(self.name, set())
        for key in ("milestones", "factor", "warmup"):
            if (getattr(self, key) is not None) != (key in needed):
                raise ValueError(f"{self.name} {'needs' if key in needed else 'takes no'} {key}")
        if self.milestones is not None and self.milestones != sorted(set(self.milestones)):
            raise ValueError("milestones must ascend")
        return self


class Augmentation(Section):
    """Random changes of the training images, made on the device before the adversary sees them."""

    crop: Annotated[int, Field(ge=0)] = Field(description="pixels of padding around a random crop; 0: no crop")
    padding: Literal["zero", "reflect"] = Field(description="what the padding holds")
    flip: bool = Field(description="mirror every other image, left to right")


class Selection(Section):
    """The PGD attack on validation images that selects the checkpoint."""

    steps: Count
    step_size: Positive
    batch_size: Count


class Train(Section):
    """The training loop, the same for every method."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Optimizer
    schedule: Schedule
    label_smoothing: Share = Field(description="share of each target spread over all classes")
    ema: Share = Field(description="decay a step of the averaged weights that are validated and kept; 0: no average")
    augmentation: Augmentation
    inner_batch_norm: Literal["eval", "train"] = Field(
        description="batch norm while the adversary searches; train: batch statistics, running ones move (Rice et al.)"
    )
    precision: Literal["fp32", "bf16"] = Field(
        description="arithmetic of the networks while training; perturbations, entropy and validation verdicts: fp32"
    )
    selection: Selection
    patience: Annotated[int, Field(ge=0)] = Field(
        description="stop after this many epochs without a better validation score; 0: never"
    )
    devices: Count = Field(
        description="equal parts that every batch is shared out in, one a GPU or process where there are several"
    )
    batch_norm: Literal["replica", "synchronised"] = Field(
        description="in training: statistics of each of these parts by itself, or of the whole batch"
    )
    stall_seconds: Positive = Field(
        description="a training over several processes ends when one of them makes no progress for so long"
    )
    checkpoint_seconds: NonNegative = Field(description="resumable state is saved at most this often")

    @model_validator(mode="after")
    def _even_parts(self) -> "Train":
        if self.batch_size % self.devices or self.batch_size < 2 * self.devices:
            raise ValueError(
                f"batch_size: {self.batch_size} cannot be shared out over {self.devices} devices: it must be a multiple"
                " of them, and at least two images each"
            )
        return self
