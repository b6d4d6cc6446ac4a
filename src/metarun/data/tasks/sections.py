"""The classes of a split: which of the pool, turned how, of which groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Section:
    """The classes of a split: each a class of the pool, turned some quarters; group by group."""

    classes: Tensor  # [count, 2]: class number, quarter turns
    group: Tensor  # [count]: which group, from 0
    smallest: str
    fewest: int  # items of its smallest class
    most: int

    @cached_property
    def sizes(self) -> Tensor:
        """Classes of each group."""
        return torch.bincount(self.group)

    @cached_property
    def members(self) -> tuple[Tensor, Tensor]:
        """The places in `classes` group by group, and where each group starts."""
        order = torch.argsort(self.group, stable=True)
        return order, self.sizes.cumsum(0) - self.sizes
