"""Labelled items on a device: where they lie, the classes of each split, and the numbers that normalise them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metarun.types import Split


@dataclass(frozen=True)
class SplitClasses:
    """The classes of one split, sorted by group. A rotated copy of a class counts as one more class."""

    classes: Tensor  # [count, 2]: number of the stored class, quarter turns
    group: Tensor  # [count]: number of its group, from 0
    smallest_class: str  # name of the class with the fewest items
    fewest_items: int
    most_items: int

    @cached_property
    def group_sizes(self) -> Tensor:
        """Number of classes of each group."""
        return torch.bincount(self.group)

    @cached_property
    def classes_by_group(self) -> tuple[Tensor, Tensor]:
        """Rows of `classes`, one group after the other, and where each group starts."""
        rows = torch.argsort(self.group, stable=True)
        return rows, self.group_sizes.cumsum(0) - self.group_sizes


@dataclass(frozen=True)
class LabelledItems:
    """The items of all classes, class by class."""

    rows: Tensor  # [items, C, H, W] uint8 or [items, D] float32: on the device, or on the host (may be a memory map)
    first_row: Tensor  # [classes]
    num_items: Tensor  # [classes]
    splits: dict[Split, SplitClasses]
    mean: Tensor  # [C, 1, 1] or [D]; its device and dtype are those of the episodes
    std: Tensor

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.rows.shape[1:])
