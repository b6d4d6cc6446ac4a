"""A made-up data set of pictures that say which class and image they are of."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from metarun.data.sources.source import Rotations
from metarun.data.store.pool import Pool, make_pool
from metarun.data.tasks.opening import LabelledData, open_classes
from metarun.types import Kind, Split

CPU = torch.device("cpu")
CLASSES, IMAGES, SIZE = 30, 8, 6


class Source:
    """Every pixel of every image says which class and image it is of; corner pixels tell how it is turned."""

    kind: ClassVar[Kind] = "classes"

    def __init__(self, rotations: Rotations) -> None:
        self.rotations, self.mean, self.std = rotations, 0.25, 0.5

    def load(self, say: object) -> Pool:
        images = np.zeros((CLASSES, IMAGES, 1, SIZE, SIZE), np.uint8)
        images += np.arange(CLASSES, dtype=np.uint8)[:, None, None, None, None] * IMAGES
        images += np.arange(IMAGES, dtype=np.uint8)[None, :, None, None, None]
        images[:, :, :, 0, 0] = 255
        numbers = list(range(CLASSES))
        splits: dict[Split, tuple[int, ...]] = {
            "train": tuple(numbers[:15]),
            "val": tuple(numbers[15:20]),
            "test": tuple(numbers[20:]),
        }
        rows = images.reshape(-1, 1, SIZE, SIZE)
        return make_pool(rows, (IMAGES,) * CLASSES, tuple(f"c{i}" for i in numbers), splits)


class Coloured(Source):
    """The same pictures with inverted values, twice as large, with three channels."""

    def load(self, say: object) -> Pool:
        pool = super().load(say)
        large = (255 - pool.items).repeat(2, axis=2).repeat(2, axis=3).repeat(3, axis=1)
        return pool._replace(items=np.ascontiguousarray(large))


def opened(rotations: Rotations = "none") -> LabelledData:
    return open_classes(Source(rotations), CPU, torch.float64, lambda _: None)
