"""VGG Flower: 102 kinds of flowers (Nilsback, Zisserman 2008)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import ColourPictures, Edition, Facts, File, at, home, obtain
from metarun.data.read import tar_archive
from metarun.data.read.images import Look
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import DataError, Pool

if TYPE_CHECKING:  # types.py imports torch
    pass

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
IMAGES, LABELS = "102flowers.tgz", "imagelabels.mat"

# MATLAB's MAT-file format, version 5
HEADER, TAG = 128, 8  # bytes
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


@dataclass(frozen=True)
class VggFlower(ColourPictures):
    folder_name: ClassVar[str] = "vgg_flower"
    facts: ClassVar[Facts] = Facts("not stated", 8_189, 345, "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/")

    images_md5: str | None
    labels_md5: str | None
    classes: int
    images: int

    def editions(self) -> tuple[Edition, ...]:
        labels = File(LABELS, at(self.mirrors, LABELS), self.labels_md5)
        return (
            Edition("archive", (File(IMAGES, at(self.mirrors, IMAGES), self.images_md5), labels)),
            Edition("unpacked", (File("jpg/"), labels)),
        )

    def load(self, say: Callable[[str], None]) -> Pool:
        data = (self.images_md5, self.labels_md5, self.classes, self.images)
        key = digest(RECIPE, *data, self.size, self.resize, self.fit)
        pack = packed(f"vgg_flower-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(self.lists(), "the split of Meta-Dataset"), self.duplicates, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        path = home(self) / obtain(self, say).files[0].path
        labels = mat_vector(home(self) / LABELS, "labels")
        label = {f"jpg/image_{number:05d}.jpg": f"{int(found):03d}" for number, found in enumerate(labels, start=1)}
        classes = tar_archive.classified(label, label.__getitem__)
        tar_archive.counted(home(self) / LABELS, classes, self.classes, self.images)
        look = Look(self.size, 3, self.resize, self.fit)
        return tar_archive.contents(
            path, classes, self.size, lambda name, content: look.of(content, f"{path}: {name}"), say
        )


def mat_vector(path: Path, variable: str) -> NDArray[np.generic]:
    """The numbers of one variable of a MAT-file of version 5, in the order in which they lie there."""
    try:
        content = path.read_bytes()
        if content[126:128] != b"IM":
            raise ValueError("not of version 5, little-endian")
        for kind, part in _elements(content[HEADER:]):
            if kind == MATRIX and (found := _numbers(part, variable)) is not None:
                return found
        raise ValueError(f"no variable {variable}")
    except (OSError, ValueError, KeyError, zlib.error, struct.error) as problem:
        raise DataError(
            f"{path} cannot be read as MATLAB's labels ({problem}); put the published one there"
        ) from problem


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; four bytes or fewer lie in the tag itself."""
    while content:
        kind, length = struct.unpack_from("<II", content)
        if kind >> 16:
            yield kind & 0xFFFF, content[4 : 4 + (kind >> 16)]
            content = content[TAG:]
        elif kind == COMPRESSED:
            yield from _elements(zlib.decompress(content[TAG : TAG + length]))
            content = content[TAG + length :]
        else:
            if TAG + length > len(content):
                raise ValueError(f"ends {TAG + length - len(content)} bytes too early")
            yield kind, content[TAG : TAG + length]
            content = content[TAG + length + -length % 8 :]


def _numbers(content: bytes, variable: str) -> NDArray[np.generic] | None:
    """Of a matrix, which is its flags, sizes, name and numbers; these may be stored smaller than they are."""
    _, (_, sizes), (_, name), (kind, numbers), *_ = _elements(content)
    if name != variable.encode():
        return None
    found = np.frombuffer(numbers, np.dtype(f"<{NUMBERS[kind]}"))
    if found.size != np.frombuffer(sizes, "<i4").prod():
        raise ValueError(f"{found.size} numbers")
    return found
