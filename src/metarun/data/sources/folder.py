"""A folder of the user's own pictures: a folder per class, of any formats, modes and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.read.class_folders import Class, Listing, listing, shown
from metarun.data.read.images import Filter, Fit, Look, in_order
from metarun.data.splits import split_file
from metarun.data.splits.split_file import Shares, some
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Duplicates, Pack, digest, packed
from metarun.data.store.pool import DataError, Pool, Say

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how pictures are packed: it names the cached file


@dataclass(frozen=True)
class Folder:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("path",)

    path: str | None
    size: int  # pixels
    channels: Literal[1, 3]
    resize: Filter
    fit: Fit
    unreadable: Literal["refuse", "skip"]
    duplicates: Duplicates
    split: str | None
    split_by: Literal["class", "group"]
    split_seed: int
    val_share: float
    test_share: float
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")
        self._shares.check()
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and self.channels == 1:
                raise ValueError(f"{name}={list(value)}: pictures of channels=1 have one; use one number")
        if min(self.std if isinstance(self.std, tuple) else (self.std,)) <= 0.0:
            raise ValueError(f"std={self.std}: use numbers above 0")

    @property
    def _shares(self) -> Shares:
        return Shares(self.split_seed, self.val_share, self.test_share)

    @property
    def _look(self) -> Look:
        return Look(self.size, self.channels, self.resize, self.fit)

    def identity(self) -> str:
        """The same wherever the folder lies, and another when it has other pictures; empty where it cannot be read."""
        try:
            found = listing(self._root())
        except DataError:
            return ""
        listed = [[each.name, *((Path(each.path).name, each.size) for each in each.pictures)] for each in found.classes]
        return digest(listed, sorted(found.splits.items()), split_file.content(self.split))

    def load(self, say: Callable[[str], None]) -> Pool:
        root = self._root()
        found = listing(root)
        for told in found.left_out:
            say(told)
        key = digest(RECIPE, str(root.resolve()), self._look, self.unreadable, found.classes)
        pack = packed(f"folder-{key}", lambda: self._contents(root, found, say), say)
        skipped = sum(len(each.pictures) for each in found.classes) - len(pack.items)
        if skipped:
            say(f"{skipped} of {skipped + len(pack.items)} pictures cannot be read and were left out")
        where = f"data.path={self.path}"
        splits = self._splits(pack, found, where)
        return pack.pool(pack.numbers(splits, where), self.duplicates, say)

    def _root(self) -> Path:
        return split_file.place(self.path, "pictures are, one folder of them per class")

    def _splits(self, pack: Pack, found: Listing, where: str) -> dict[Split, list[str]]:
        if self.split is not None:
            return split_file.read(self.split, pack.names, where)
        if found.splits:
            return split_file.whole(found.splits, where)
        if self.split_by == "group" and not any(pack.groups):
            raise DataError(f"data.split_by=group: {where} has no group folders around its class folders; use class")
        return split_file.drawn(pack.names, pack.groups if self.split_by == "group" else (), self._shares, where)

    def _contents(self, root: Path, found: Listing, say: Say) -> Contents:
        classes = found.classes if self.unreadable == "refuse" else self._readable(root, found.classes, say)
        names = tuple(each.name for each in classes)
        groups = tuple(each.group for each in classes)
        counts = tuple(len(each.pictures) for each in classes)
        paths = (root / picture.path for each in classes for picture in each.pictures)
        rows = in_order(paths, partial(_opened, self._look))
        return Contents(names, counts, (self.channels, self.size, self.size), rows, groups if any(groups) else ())

    def _readable(self, root: Path, classes: tuple[Class, ...], say: Say) -> tuple[Class, ...]:
        """Each picture is opened once more beforehand: how many there are has to be known before they are packed."""
        paths = (root / picture.path for each in classes for picture in each.pictures)
        fine: Iterator[NDArray[np.uint8]] = in_order(paths, partial(_can_be_opened, self._look))
        kept = [
            each._replace(pictures=tuple(picture for picture in each.pictures if next(fine)[0])) for each in classes
        ]
        for before, after in zip(classes, kept, strict=True):
            lost = [shown(picture.path) for picture in before.pictures if picture not in after.pictures]
            if not after.pictures:
                raise DataError(f"class {before.name}: none of its {len(lost)} pictures can be read; take it away")
            if lost:
                say(f"class {before.name}: {len(lost)} pictures that cannot be read: {some(lost)}")
        return tuple(kept)


def _opened(look: Look, path: Path) -> NDArray[np.uint8]:
    name = shown(str(path))
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(f"{name} cannot be read ({problem.strerror}); data.unreadable=skip leaves it out") from problem
    try:
        return look.of(content, name)
    except DataError as problem:
        raise DataError(f"{problem}; data.unreadable=skip leaves it out") from problem


def _can_be_opened(look: Look, path: Path) -> NDArray[np.uint8]:
    try:
        _opened(look, path)
    except DataError:
        return np.zeros(1, np.uint8)
    return np.ones(1, np.uint8)
