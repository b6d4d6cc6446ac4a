"""What is packed: the items of a data set in order, counted, checked and compared while they are written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metarun.data.store.pool import Items, Say

PROGRESS_EVERY_S = 2.0  # between two lines of progress


@dataclass(frozen=True)
class Contents:
    """Names of classes and their items. `rows` yields the items class after class, one or several at a time."""

    names: tuple[str, ...]
    counts: tuple[int, ...]  # items of each class
    item: tuple[int, ...]  # (C, H, W) of uint8 images, (D,) of float32 features
    rows: Iterator[Items]
    groups: tuple[str, ...] = ()
    compared: bool = True  # False: too many items to remember a digest of each, so duplicates are not looked for

    @property
    def dtype(self) -> np.dtype[np.uint8 | np.float32]:
        return np.dtype(np.uint8) if len(self.item) == 3 else np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.counts), *self.item)


class Duplicate(NamedTuple):
    """An item that two classes have in common."""

    first: int  # number of the earlier class
    second: int  # number of the later class
    row: int  # of the item in the later class


def checked_blocks(contents: Contents, key: str, say: Say) -> Iterator[Items]:
    """The items in blocks [n, *item]; a wrong shape, type or number of them fails, and progress is said."""
    item, total, done = contents.item, sum(contents.counts), 0
    due = time.monotonic() + PROGRESS_EVERY_S
    for rows in contents.rows:
        block = rows if rows.ndim > len(item) else rows[None]
        assert block.shape[1:] == item, f"items of {block.shape[1:]}, not {item}"
        assert block.dtype == contents.dtype, f"{block.dtype}, not {contents.dtype}"
        done += len(block)
        yield np.ascontiguousarray(block)
        if time.monotonic() > due:
            say(f"{key.rpartition('-')[0]}: {done} of {total} items packed (once; kept for later runs)")
            due = time.monotonic() + PROGRESS_EVERY_S
    assert done == total, f"{done} items, not {total}"


class DuplicateFinder:
    """Finds items that two classes have in common by a digest of their bytes."""

    def __init__(self, contents: Contents) -> None:
        self._class_of_row = np.repeat(np.arange(len(contents.counts)), contents.counts)
        self._compared = contents.compared
        self._classes_with: dict[bytes, tuple[int, ...]] = {}  # digest of an item -> the classes that have it
        self._row = 0
        self._found: dict[tuple[int, int], Duplicate] = {}

    def add(self, block: Items) -> None:
        """The next items, in the order in which they are packed."""
        for item in block if self._compared else ():
            name = hashlib.blake2b(item.tobytes(), digest_size=10).digest()
            here, before = int(self._class_of_row[self._row]), self._classes_with.get(name, ())
            if here not in before:
                self._classes_with[name] = (*before, here)
                self._found |= {(other, here): Duplicate(other, here, self._row) for other in before}
            self._row += 1

    @property
    def found(self) -> tuple[Duplicate, ...]:
        """One for each pair of classes."""
        return tuple(self._found.values())
