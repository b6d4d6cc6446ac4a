"""What is to be packed: the items of a data set, one after the other, counted, checked and compared as they pass."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.pool import Say

SPEAK_EVERY_S = 2.0


@dataclass(frozen=True)
class Contents:
    """What is to be packed. `rows` yields the items in order, class after class, each alone or several at a time."""

    names: tuple[str, ...]
    counts: tuple[int, ...]  # items of each class
    item: tuple[int, ...]  # (C, H, W) of uint8 images, (D,) of float32 features
    rows: Iterator[NDArray[Any]]
    groups: tuple[str, ...] = ()
    compared: bool = True  # False: so many items that remembering each would take more memory than there is

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if len(self.item) == 3 else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.counts), *self.item)


class Twin(NamedTuple):
    """An item that two classes have alike."""

    first: int  # class numbers
    second: int
    row: int  # of the later one


class Rows:
    """A data set's items in blocks, counted and checked as they pass."""

    def __init__(self, contents: Contents, key: str, say: Say) -> None:
        self.contents, self.key, self.say = contents, key, say

    def __iter__(self) -> Iterator[NDArray[Any]]:
        item, total, done = self.contents.item, sum(self.contents.counts), 0
        due = time.monotonic() + SPEAK_EVERY_S
        for block in self.contents.rows:
            block = block if block.ndim > len(item) else block[None]
            assert block.shape[1:] == item, f"items of {block.shape[1:]}, not {item}"
            assert block.dtype == self.contents.dtype, f"{block.dtype}, not {self.contents.dtype}"
            done += len(block)
            yield np.ascontiguousarray(block)
            if time.monotonic() > due:
                self.say(f"{self.key.rpartition('-')[0]}: {done} of {total} items packed (once; kept for later runs)")
                due = time.monotonic() + SPEAK_EVERY_S
        assert done == total, f"{done} items, not {total}"


class Twins:
    """Finds items that two classes share, by their bytes."""

    def __init__(self, contents: Contents) -> None:
        self.owner = np.repeat(np.arange(len(contents.counts)), contents.counts)
        self.compared = contents.compared
        self.owners: dict[bytes, tuple[int, ...]] = {}
        self.row = 0
        self._found: dict[tuple[int, int], Twin] = {}

    def seen(self, block: NDArray[Any]) -> NDArray[Any]:
        for item in block if self.compared else ():
            name = hashlib.blake2b(item.tobytes(), digest_size=10).digest()
            here, before = int(self.owner[self.row]), self.owners.get(name, ())
            if here not in before:
                self.owners[name] = (*before, here)
                self._found |= {(other, here): Twin(other, here, self.row) for other in before}
            self.row += 1
        return block

    @property
    def found(self) -> tuple[Twin, ...]:
        return tuple(self._found.values())
