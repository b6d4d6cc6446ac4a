"""All items of a data set in one array, row after row, class after class, and which classes belong to which split."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # types.py imports torch, which no data source needs
    from metarun.types import Split

Say = Callable[[str], None]
Splits = Mapping["Split", tuple[int, ...]]


class DataError(Exception):
    """A problem with data that its user can solve, told in one line."""


class Pool(NamedTuple):
    """Items by class. `items` may be a read-only memory map; build one with `make_pool`, which checks it."""

    items: NDArray[Any]  # uint8 images [rows, C, H, W], or float32 features [rows, D]
    bounds: NDArray[np.int64]  # [classes + 1]: class c has rows bounds[c] to bounds[c + 1] - 1
    names: tuple[str, ...]  # "alphabet03/character07"
    groups: tuple[str, ...]  # of each class: its alphabet, its superclass; all "" where there are none
    splits: dict[Split, tuple[int, ...]]  # class numbers

    def of(self, number: int) -> NDArray[Any]:
        """All items of one class."""
        found: NDArray[Any] = self.items[self.bounds[number] : self.bounds[number + 1]]
        return found


def make_pool(
    items: NDArray[Any], counts: tuple[int, ...], names: tuple[str, ...], splits: Splits, groups: tuple[str, ...] = ()
) -> Pool:
    """`counts`: items of each class, which lie one class after the other."""
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
    """What was computed or downloaded once lies here; safe to delete."""
    chosen = os.environ.get("METARUN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "metarun"
