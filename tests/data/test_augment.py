"""Altered pictures against a plain loop over single pictures; what is drawn belongs to the task and to nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from metarun.data.tasks import random_bits
from metarun.data.tasks.augment import AUGMENT_STREAM, Augment
from metarun.data.tasks.opening import open_classes
from metarun.types import Split
from support.labelled import Source
from support.shapes import shape

T, B, SIDE = 5, 6, 9
NONE = {"per": "image", "crop": 0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
ALL = {"per": "image", "crop": 3, "flip": 0.5, "brightness": 0.4, "contrast": 0.3, "saturation": 0.6}
NUMBERS = torch.arange(7, 7 + T)


def augment(**changed: object) -> Augment:
    return Augment(**{**NONE, **changed})  # type: ignore[arg-type]


def pictures(channels: int = 3) -> Tensor:
    return torch.rand(T, B, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def drawn(per: str) -> NDArray[Any]:
    own = B if per == "image" else 1
    u = random_bits.uniform_floats(3, 0, NUMBERS, AUGMENT_STREAM, own * 6).view(T, own, 6).expand(T, B, 6)
    found: NDArray[Any] = u.numpy()
    return found


def by_hand(picture: NDArray[Any], u: NDArray[Any], what: Augment) -> NDArray[Any]:
    """One picture [C, H, W] in the order crop, mirror, brightness, contrast, saturation; numpy alone."""
    crop = what.crop
    framed = np.pad(picture, ((0, 0), (crop, crop), (crop, crop)), mode="edge")
    top, left = (int(u[axis] * (2 * crop + 1)) for axis in (0, 1))
    cut = framed[:, top : top + SIDE, left : left + SIDE]
    cut = cut[:, :, ::-1] if u[2] < what.flip else cut
    weights = np.array([0.299, 0.587, 0.114]) if len(cut) == 3 else np.ones(1)
    bright, contrast, colour = (1 + span * (2 * r - 1) for span, r in zip(spans(what), u[3:], strict=True))
    cut = np.clip(cut * bright, 0, 1)
    middle = np.tensordot(weights, cut, 1).mean()
    cut = np.clip(middle + contrast * (cut - middle), 0, 1)
    grey = np.tensordot(weights, cut, 1)
    done: NDArray[Any] = np.clip(grey + colour * (cut - grey), 0, 1) if len(cut) == 3 else cut
    return done


def spans(what: Augment) -> tuple[float, float, float]:
    return what.brightness, what.contrast, what.saturation


@pytest.mark.parametrize("per", ["image", "task"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_altered_as_each_picture_is_by_hand(per: str, channels: int) -> None:
    what = augment(**{**ALL, "per": per})
    x = pictures(channels)
    altered = what.apply(x, 3, 0, NUMBERS)
    u = drawn(per)
    for task in range(T):
        for place in range(B):
            expected = by_hand(x[task, place].numpy(), u[task, place], what)
            assert np.abs(altered[task, place].numpy() - expected).max() < 1e-12
    assert ((u[:, :1] == u).all()) == (per == "task")


def test_colours_change_as_pillow_changes_them() -> None:
    """Within a grey level or two of 255, since Pillow rounds at every step."""
    x = pictures()
    for name, enhance in (("brightness", ImageEnhance.Brightness), ("saturation", ImageEnhance.Color)):
        altered = augment(**{name: 0.5}).apply(x, 3, 0, NUMBERS)
        u = drawn("image")[..., {"brightness": 3, "saturation": 5}[name]]
        for task in range(T):
            pixels = (x[task, 0] * 255).round().byte().permute(1, 2, 0).numpy()
            changed = enhance(Image.fromarray(pixels)).enhance(1 + 0.5 * (2 * u[task, 0] - 1))
            ours = (altered[task, 0] * 255).permute(1, 2, 0).numpy()
            assert np.abs(np.asarray(changed) - ours).max() < 2.5


def test_nothing_set_changes_nothing() -> None:
    assert augment().changes_nothing
    assert torch.equal(augment().apply(pictures(), 3, 0, NUMBERS), pictures())
    for name in ("crop", "flip", "brightness", "contrast", "saturation"):
        assert not augment(**{name: 1}).changes_nothing


def test_all_places_and_both_sides_are_drawn() -> None:
    x = torch.zeros(400, 5, 1, SIDE, SIDE, dtype=torch.float64)
    x[..., 4, 3] = 1
    moved = augment(crop=2, flip=0.5).apply(x, 0, 0, torch.arange(400)).flatten(0, 2)
    spots = {tuple(place) for place in moved.nonzero()[:, 1:].tolist()}
    assert {row for row, _ in spots} == {2, 3, 4, 5, 6}
    assert {column for _, column in spots} == {1, 2, 3, 4, 5} | {3 + 0, 4, 5, 6, 7}
    mirrored = augment(flip=0.25).apply(x, 0, 0, torch.arange(400)).flatten(0, 2)[:, 4, 5].mean()
    assert abs(float(mirrored) - 0.25) < 0.05


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_only_training_is_altered_and_the_task_decides_how(split: Split) -> None:
    source, cpu = Source("none"), torch.device("cpu")
    plain, changed = (open_classes(source, cpu, torch.float64, lambda _: None, what) for what in (None, augment(**ALL)))
    tasks = changed.tasks(split, shape(3, 1, 2), 0)
    together, before = tasks(torch.arange(9)), plain.tasks(split, shape(3, 1, 2), 0)(torch.arange(9))
    assert torch.equal(together.support.x, before.support.x) == (split != "train")
    alone = tasks(torch.tensor([5]))
    assert torch.equal(alone.query.x[0], together.query.x[5])
    other = changed.tasks(split, shape(3, 1, 2), 1)(torch.arange(9))
    assert not torch.equal(other.support.x, together.support.x)
