"""The section `data`: which data set, where it comes from, and how it is split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.base import Count, Section, Seed

Path = Annotated[str, Field(min_length=1)]
DataName = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "svhn", "image_folder"]

# What tables and figures call a source that has a name of its own.
TITLES = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN"}


class Split(Section):
    """How the source is split, stratified by class; the rest is the training set.

    A source with a test set of its own keeps it: `test` is then null for all of it, or how many
    of its images make a stratified subset. Otherwise `test` images are split off the one set there is.
    """

    validation: Count = Field(description="images of the training set held out for selection")
    test: Count | None = Field(None, description="images for the final evaluation; null: the source's own test set")
    train: Count | None = Field(None, description="a stratified subset of the rest to train on; null: all of it")
    seed: Seed = Field(description="seed of the split, independent of the training seeds")


class Data(Section):
    """Which data set, where it lies, and its split."""

    name: DataName = Field(description="data set; image_folder: class sub-folders of PNG or JPEG")
    title: Annotated[str, Field(pattern=r"^\S(.*\S)?$")] | None = Field(
        None, description="what tables call the data; null: the usual name of the source"
    )
    folder: Path | None = Field(None, description="folder with the source's files; null: they are downloaded")
    archive: Path | None = Field(None, description="archive (.tar.xz, .tar.gz, .zip) with the source's files")
    resize: Count | None = Field(
        None, description="for image_folder: side in pixels that the central square of each image is scaled to"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="for image_folder: 1, all images must be grey; 3, all must be colour; null: all alike"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="content hash that meta.json must have; null: not checked"
    )
    split: Split

    @model_validator(mode="after")
    def _fits_name(self) -> "Data":
        given = [key for key in ("folder", "archive") if getattr(self, key) is not None]
        if self.name == "digits" and given:
            raise ValueError(f"digits are embedded and take no {given[0]}")
        if len(given) == 2:
            raise ValueError("folder and archive exclude each other")
        if self.name == "digits" and self.split.test is None:
            raise ValueError("digits have no test set of their own and need split.test")
        if self.name == "image_folder":
            if not given:
                raise ValueError("image_folder needs folder or archive")
            if self.title is None:
                raise ValueError("image_folder needs title, what tables call the data")
        for key in ("resize", "channels"):
            if self.name != "image_folder" and getattr(self, key) is not None:
                raise ValueError(f"{self.name} takes no {key}")
        return self

    @property
    def called(self) -> str:
        """What tables and figures call the data: the title, or the usual name of the source."""
        return self.title or TITLES.get(self.name, self.name)
