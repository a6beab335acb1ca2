"""Crops and flips: each image is a window of its padded self, perhaps mirrored, by its own random numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from pipeline.params import Augmentation
from pipeline.seeding import Stream
from pipeline.training.augmentation import augment

STREAM = Stream.of(0, "augmentation", 1)
INDEX = torch.arange(400)


def settings(crop: int = 0, padding: str = "zero", flip: bool = False) -> Augmentation:
    return Augmentation(crop=crop, padding=padding, flip=flip)


@pytest.fixture
def images() -> Tensor:
    return Stream.of(0, "images").at(INDEX).uniform(2, 5, 7)


def windows(image: Tensor, crop: int, padding: str) -> dict[tuple[int, int], np.ndarray]:
    """Every crop of the original size out of one padded image, by NumPy."""
    mode = {"zero": "constant", "reflect": "reflect"}[padding]
    padded = np.pad(image.numpy(), ((0, 0), (crop, crop), (crop, crop)), mode=mode)
    _, height, width = image.shape
    places = range(2 * crop + 1)
    return {(i, j): padded[:, i : i + height, j : j + width] for i in places for j in places}


def test_without_crop_and_flip_the_images_stay_as_they_are(images: Tensor) -> None:
    assert augment(images, settings(), STREAM.at(INDEX)) is images


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("crop", [1, 3])
def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_are_equally_likely(
    images: Tensor, crop: int, padding: str
) -> None:
    found = []
    for image, result in zip(images, augment(images, settings(crop, padding), STREAM.at(INDEX)), strict=True):
        matches = [place for place, window in windows(image, crop, padding).items() if (window == result.numpy()).all()]
        assert matches
        found.append(matches[0])
    counts = np.array([found.count(place) for place in windows(images[0], crop, padding)])
    expected = len(images) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(counts)  # chi square, far above its mean


def test_a_flip_mirrors_half_of_the_images_from_left_to_right(images: Tensor) -> None:
    flipped = augment(images, settings(flip=True), STREAM.at(INDEX))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_what_an_example_gets_does_not_depend_on_its_batch(images: Tensor) -> None:
    changes = settings(2, "reflect", True)
    together = augment(images, changes, STREAM.at(INDEX))
    part = torch.tensor([7, 300, 12])
    assert torch.equal(augment(images[part], changes, STREAM.at(part)), together[part])


@pytest.mark.usefixtures("untouched_random_state")
def test_augmentation_draws_from_its_stream_alone(images: Tensor) -> None:
    changes = settings(2, "zero", True)
    first = augment(images, changes, STREAM.at(INDEX))
    other = augment(images, changes, Stream.of(0, "augmentation", 2).at(INDEX))
    assert torch.equal(first, augment(images, changes, STREAM.at(INDEX))) and not torch.equal(first, other)


@given(pixels=arrays(np.uint8, (4, 2, 5, 7)), crop=st.integers(0, 3), padding=st.sampled_from(["zero", "reflect"]))
def test_augmented_pixels_are_pixels_of_the_image_or_padding(pixels: np.ndarray, crop: int, padding: str) -> None:
    images = torch.from_numpy(pixels).float() / 255
    made = augment(images, settings(crop, padding, True), STREAM.at(INDEX[:4]))
    for image, result in zip(images, made, strict=True):
        allowed = set(image.ravel().tolist()) | ({0.0} if crop and padding == "zero" else set())
        assert set(result.ravel().tolist()) <= allowed
