"""A data set in memory: all items in one array, class after class, and the classes of each split."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # types.py imports torch, which no data source needs
    from metarun.types import Split

Say = Callable[[str], None]  # shows the user one line
Splits = Mapping["Split", tuple[int, ...]]  # class numbers of each split
Items = NDArray[np.uint8 | np.float32]  # uint8 images [rows, C, H, W], or float32 features [rows, D]


class DataError(Exception):
    """A problem with data that the user can solve, in one line that says how."""


class Pool(NamedTuple):
    """Items by class. `items` may be a read-only memory map. `make_pool` builds a Pool and checks it."""

    items: Items
    bounds: NDArray[np.int64]  # [classes + 1]: class c has rows bounds[c] to bounds[c + 1] - 1
    names: tuple[str, ...]  # "alphabet03/character07"
    groups: tuple[str, ...]  # of each class: its alphabet, its superclass; all "" where there are none
    splits: dict[Split, tuple[int, ...]]  # class numbers

    def items_of(self, number: int) -> Items:
        """All items of one class."""
        return self.items[self.bounds[number] : self.bounds[number + 1]]


def make_pool(
    items: Items, counts: tuple[int, ...], names: tuple[str, ...], splits: Splits, groups: tuple[str, ...] = ()
) -> Pool:
    """`counts`: the number of items of each class; classes lie one after the other."""
    assert items.dtype in (np.uint8, np.float32), f"{items.dtype}, not uint8 or float32"
    assert items.ndim == (4 if items.dtype == np.uint8 else 2), f"{items.dtype} {items.shape}"
    assert sum(counts) == len(items), f"{sum(counts)} items counted, {len(items)} there"
    assert len(names) == len(counts), f"{len(names)} names, {len(counts)} classes"
    assert len(set(names)) == len(names), f"{len(names)} names, {len(set(names))} of them different"
    assert len(groups) in (0, len(names)), f"{len(groups)} groups named for {len(names)} classes"
    numbers = [number for classes in splits.values() for number in classes]
    assert len(set(numbers)) == len(numbers), f"{len(numbers)} classes in splits, {len(set(numbers))} of them different"
    assert set(numbers) <= set(range(len(names))), f"classes {min(numbers)} to {max(numbers)} of {len(names)}"
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return Pool(items, bounds, names, groups or ("",) * len(names), dict(splits))


def cache_root() -> Path:
    """The folder of everything that was computed or downloaded once; safe to delete."""
    chosen = os.environ.get("METARUN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "metarun"
