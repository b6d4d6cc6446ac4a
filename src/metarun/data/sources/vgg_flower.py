"""VGG Flower: 102 kinds of flowers (Nilsback, Zisserman 2008)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read import tar_archive
from metarun.data.sources.packed_source import ColourPictures
from metarun.data.store.contents import Contents
from metarun.data.store.pool import DataError, Say

FLOWER_ARCHIVE, FLOWER_LABELS = "102flowers.tgz", "imagelabels.mat"

# MATLAB's MAT-file format, version 5
MAT_HEADER, MAT_TAG = 128, 8  # bytes
MAT_MATRIX, MAT_COMPRESSED = 14, 15  # types of elements
MAT_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


@dataclass(frozen=True)
class VggFlower(ColourPictures):
    recipe: ClassVar[int] = 1
    folder_name: ClassVar[str] = "vgg_flower"
    facts: ClassVar[Facts] = Facts("not stated", 8_189, 345, "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/")

    images_md5: str | None
    labels_md5: str | None
    classes: int
    images: int

    def editions(self) -> tuple[Edition, ...]:
        images = PublishedFile(FLOWER_ARCHIVE, mirror_urls(self.mirrors, FLOWER_ARCHIVE), self.images_md5)
        labels = PublishedFile(FLOWER_LABELS, mirror_urls(self.mirrors, FLOWER_LABELS), self.labels_md5)
        return Edition("archive", (images, labels)), Edition("unpacked", (PublishedFile("jpg/"), labels))

    def contents(self, say: Say) -> Contents:
        path = data_folder(self) / fetch_edition(self, say).files[0].path
        labels = mat_vector(data_folder(self) / FLOWER_LABELS, "labels")
        class_of = {f"jpg/image_{number:05d}.jpg": f"{int(label):03d}" for number, label in enumerate(labels, start=1)}
        classes = tar_archive.files_by_class(class_of, class_of.__getitem__)
        tar_archive.check_published_counts(data_folder(self) / FLOWER_LABELS, classes, self.classes, self.images)
        decoder = self.decoder
        return tar_archive.picture_contents(
            path, classes, self.size, lambda name, content: decoder.decode(content, f"{path}: {name}"), say
        )


def mat_vector(path: Path, variable: str) -> NDArray[np.generic]:
    """The numbers of one variable of a MAT-file of version 5, in the order of the file."""
    try:
        content = path.read_bytes()
        if content[126:128] != b"IM":
            raise ValueError("not of version 5, little-endian")
        for kind, element in _mat_elements(content[MAT_HEADER:]):
            if kind == MAT_MATRIX and (found := _mat_numbers(element, variable)) is not None:
                return found
        raise ValueError(f"no variable {variable}")
    except (OSError, ValueError, KeyError, zlib.error, struct.error) as problem:
        raise DataError(
            f"{path} cannot be read as MATLAB's labels ({problem}); put the published one there"
        ) from problem


def _mat_elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element. An element of four bytes or fewer lies in its tag."""
    while content:
        kind, length = struct.unpack_from("<II", content)
        if kind >> 16:
            yield kind & 0xFFFF, content[4 : 4 + (kind >> 16)]
            content = content[MAT_TAG:]
        elif kind == MAT_COMPRESSED:
            yield from _mat_elements(zlib.decompress(content[MAT_TAG : MAT_TAG + length]))
            content = content[MAT_TAG + length :]
        else:
            if MAT_TAG + length > len(content):
                raise ValueError(f"ends {MAT_TAG + length - len(content)} bytes too early")
            yield kind, content[MAT_TAG : MAT_TAG + length]
            content = content[MAT_TAG + length + -length % 8 :]


def _mat_numbers(content: bytes, variable: str) -> NDArray[np.generic] | None:
    """The numbers of a matrix (flags, sizes, name, numbers); None if it has another name.

    MATLAB stores numbers in a smaller type than the matrix has, where they fit.
    """
    _, (_, sizes), (_, name), (kind, numbers), *_ = _mat_elements(content)
    if name != variable.encode():
        return None
    found = np.frombuffer(numbers, np.dtype(f"<{MAT_DTYPES[kind]}"))
    if found.size != np.frombuffer(sizes, "<i4").prod():
        raise ValueError(f"{found.size} numbers")
    return found
