"""A folder of the user's own pictures: one folder per class, pictures of any format, mode and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.read.class_folders import ClassListing, PictureClass, list_classes, printable
from metarun.data.read.images import Filter, Fit, PictureDecoder, map_in_order
from metarun.data.sources.packed_source import OwnFiles, Packing, PictureSource
from metarun.data.splits.split_file import check_split_sizes, draw_split, read_split, split_file_digest
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Pack, digest
from metarun.data.store.pool import DataError, Say, Splits
from metarun.errors import first_few

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split


@dataclass(frozen=True)
class Folder(OwnFiles, PictureSource):
    recipe: ClassVar[int] = 1
    unpacked: ClassVar[Mapping[str, str]] = {
        **PictureSource.unpacked,
        **OwnFiles.unpacked,
        "split_by": "splits are made after packing",
    }

    size: int  # pixels
    channels: Literal[1, 3]
    resize: Filter
    fit: Fit
    unreadable: Literal["refuse", "skip"]
    split_by: Literal["class", "group"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")
        for name, value in {"mean": self.mean, "std": self.std}.items():
            if isinstance(value, tuple) and self.channels == 1:
                raise ValueError(f"{name}={list(value)}: pictures of channels=1 have one; use one number")
        if min(self.std if isinstance(self.std, tuple) else (self.std,)) <= 0.0:
            raise ValueError(f"std={self.std}: use numbers above 0")

    @property
    def decoder(self) -> PictureDecoder:
        return PictureDecoder(self.size, self.channels, self.resize, self.fit)

    def identity(self) -> str:
        """The names of classes, pictures and their sizes, wherever the folder lies; "" if it cannot be read."""
        try:
            found = list_classes(self._root())
        except DataError:
            return ""
        listed = [[each.name, *((Path(each.path).name, each.size) for each in each.pictures)] for each in found.classes]
        return digest(listed, sorted(found.splits.items()), split_file_digest(self.split))

    def packing(self, say: Say) -> Packing:
        root = self._root()
        found = list_classes(root)
        for sentence in found.left_out:
            say(sentence)
        return Packing(
            partial(self._contents, root, found.classes, say),
            partial(self._split_numbers, found, say),
            self.duplicates,
            files=(str(root.resolve()), found.classes),
        )

    def _root(self) -> Path:
        return self.existing_path("pictures are, one folder of them per class")

    def _split_numbers(self, found: ClassListing, say: Say, pack: Pack) -> Splits:
        skipped = sum(len(each.pictures) for each in found.classes) - len(pack.items)
        if skipped:
            say(f"{skipped} of {skipped + len(pack.items)} pictures cannot be read and were left out")
        where = f"data.path={self.path}"
        return pack.numbers(self._splits(pack, found, where), where)

    def _splits(self, pack: Pack, found: ClassListing, where: str) -> dict[Split, list[str]]:
        if self.split is not None:
            return read_split(self.split, pack.names, where)
        if found.splits:
            return check_split_sizes(found.splits, where)
        if self.split_by == "group" and not any(pack.groups):
            raise DataError(f"data.split_by=group: {where} has no group folders around its class folders; use class")
        return draw_split(pack.names, pack.groups if self.split_by == "group" else (), self.shares, where)

    def _contents(self, root: Path, listed: tuple[PictureClass, ...], say: Say) -> Contents:
        classes = listed if self.unreadable == "refuse" else self._without_unreadable(root, listed, say)
        names = tuple(each.name for each in classes)
        groups = tuple(each.group for each in classes)
        counts = tuple(len(each.pictures) for each in classes)
        paths = (root / picture.path for each in classes for picture in each.pictures)
        rows = map_in_order(paths, partial(_decode_file, self.decoder))
        return Contents(names, counts, (self.channels, self.size, self.size), rows, groups if any(groups) else ())

    def _without_unreadable(self, root: Path, classes: tuple[PictureClass, ...], say: Say) -> tuple[PictureClass, ...]:
        """Decodes every picture once before packing, because the number of pictures has to be known then."""
        paths = (root / picture.path for each in classes for picture in each.pictures)
        readable: Iterator[NDArray[np.uint8]] = map_in_order(paths, partial(_can_be_decoded, self.decoder))
        kept = [
            each._replace(pictures=tuple(picture for picture in each.pictures if next(readable)[0])) for each in classes
        ]
        for before, after in zip(classes, kept, strict=True):
            lost = [printable(picture.path) for picture in before.pictures if picture not in after.pictures]
            if not after.pictures:
                raise DataError(f"class {before.name}: none of its {len(lost)} pictures can be read; remove the folder")
            if lost:
                say(f"class {before.name}: {len(lost)} pictures that cannot be read: {first_few(lost)}")
        return tuple(kept)


def _decode_file(decoder: PictureDecoder, path: Path) -> NDArray[np.uint8]:
    name = printable(str(path))
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(f"{name} cannot be read ({problem.strerror}); data.unreadable=skip leaves it out") from problem
    try:
        return decoder.decode(content, name)
    except DataError as problem:
        raise DataError(f"{problem}; data.unreadable=skip leaves it out") from problem


def _can_be_decoded(decoder: PictureDecoder, path: Path) -> NDArray[np.uint8]:
    """[1] if the picture can be decoded, else [0]."""
    try:
        _decode_file(decoder, path)
    except DataError:
        return np.zeros(1, np.uint8)
    return np.ones(1, np.uint8)
