"""Omniglot: 1623 handwritten characters of 50 alphabets, each by 20 drawers (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read.images import PictureDecoder
from metarun.data.read.zip_archive import content_digest, open_zip, zip_bytes, zip_names
from metarun.data.sources.packed_source import PublishedPictures
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Pack
from metarun.data.store.pool import DataError, Say

if TYPE_CHECKING:  # types.py imports torch
    from PIL import Image

    from metarun.types import Split

OMNIGLOT_PAGE = "https://github.com/brendenlake/omniglot/tree/master/python"


@dataclass(frozen=True)
class InvertedDecoder(PictureDecoder):
    """Decodes a drawing as white on black. Inverted before it is resized: the filter rounds differently after."""

    def convert(self, picture: Image.Image) -> NDArray[np.uint8]:
        from PIL import ImageOps  # late: a run that finds its packed file reads no picture

        return super().convert(ImageOps.invert(picture.convert("L")))


@dataclass(frozen=True)
class Omniglot(PublishedPictures):
    recipe: ClassVar[int] = 1
    folder_name: ClassVar[str] = "omniglot"
    facts: ClassVar[Facts] = Facts(licence="MIT", images=32_460, megabytes=14, page=OMNIGLOT_PAGE)
    unpacked: ClassVar[Mapping[str, str]] = {
        **PublishedPictures.unpacked,
        "split": "all classes are packed, and splits are made after packing",
        "split_seed": "all classes are packed, and splits are made after packing",
        "val_classes": "all classes are packed, and splits are made after packing",
        "finn_test_classes": "all classes are packed, and splits are made after packing",
    }

    background_md5: str
    evaluation_md5: str
    background_content: str  # zip_archive.content_digest, which a repacked archive keeps
    evaluation_content: str
    background_classes: int
    evaluation_classes: int
    images_per_class: int
    invert: bool  # True: ink 255 on 0; False: as published, ink 0 on 255
    split: Literal["finn", "lake", "vinyals"]
    split_seed: int
    val_classes: int
    finn_test_classes: int
    mean: float
    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.counts().values()) < 1:
            sizes = ", ".join(f"{count} {split}" for split, count in self.counts().items())
            raise ValueError(f"val_classes={self.val_classes}: leaves {sizes} classes; each split needs 1 or more")

    def counts(self) -> dict[Split, int]:
        if self.split == "vinyals":
            return {split: len(names) for split, names in class_list("omniglot_vinyals").items()}
        total = self.background_classes + self.evaluation_classes
        test = self.finn_test_classes if self.split == "finn" else self.evaluation_classes
        return {"train": total - self.val_classes - test, "val": self.val_classes, "test": test}

    def editions(self) -> tuple[Edition, ...]:
        sums = {"images_background.zip": self.background_md5, "images_evaluation.zip": self.evaluation_md5}
        files = (PublishedFile(name, mirror_urls(self.mirrors, name), md5) for name, md5 in sums.items())
        return (Edition("published", tuple(files)),)

    def split_numbers(self, pack: Pack) -> dict[Split, tuple[int, ...]]:
        if self.split == "vinyals":
            return pack.numbers(class_list("omniglot_vinyals"), "data.split=vinyals")
        return self._drawn_split(pack.names)

    def _drawn_split(self, names: tuple[str, ...]) -> dict[Split, tuple[int, ...]]:
        """finn: all classes at random. lake: the background classes at random, and the evaluation classes for test."""
        mixed = len(names) if self.split == "finn" else self.background_classes
        draw = random.Random(self.split_seed).random  # the only generator that Python promises never to change
        keys = {number: draw() for number in sorted(range(mixed), key=names.__getitem__)}
        order = [*sorted(keys, key=keys.__getitem__), *range(mixed, len(names))]
        splits: dict[Split, tuple[int, ...]] = {}
        for split, count in self.counts().items():
            splits[split], order = tuple(sorted(order[:count])), order[count:]
        return splits

    def contents(self, say: Say) -> Contents:
        paths = [data_folder(self) / file.path for file in fetch_edition(self, say).files]
        digests = (self.background_content, self.evaluation_content)
        sums = (self.background_md5, self.evaluation_md5)
        expected = (self.background_classes, self.evaluation_classes)
        found = [self._images_by_character(path, count) for path, count in zip(paths, expected, strict=True)]
        for path, md5, content in zip(paths, sums, digests, strict=True):
            _check_archive(path, md5, content)
        names = tuple(name for classes in found for name in classes)
        groups = tuple(name.partition("/")[0] for name in names)
        counts = (self.images_per_class,) * len(names)
        return Contents(names, counts, (1, self.size, self.size), self._rows(paths, found), groups)

    def _images_by_character(self, path: Path, expected: int) -> dict[str, list[str]]:
        """The images of each class: <anything>/Alphabet/characterNN/IIII_DD.png is of Alphabet/characterNN."""
        with open_zip(path) as file:
            images = [name for name in zip_names(file) if name.endswith(".png")]
        classes: dict[str, list[str]] = {}
        for image in images:
            classes.setdefault("/".join(image.split("/")[-3:-1]), []).append(image)
        if len(classes) != expected:
            raise DataError(f"{path} has {len(classes)} characters, not {expected}; put the published archive there")
        for name, found in classes.items():
            if len(found) != self.images_per_class:
                raise DataError(f"{path}: {name} has {len(found)} images, not {self.images_per_class}")
        return dict(sorted(classes.items()))

    def _rows(self, paths: list[Path], found: list[dict[str, list[str]]]) -> Iterator[NDArray[np.uint8]]:
        decoder = (InvertedDecoder if self.invert else PictureDecoder)(self.size, 1, self.resize)
        for path, classes in zip(paths, found, strict=True):
            with open_zip(path) as file:
                for name in (name for images in classes.values() for name in images):
                    yield decoder.decode(zip_bytes(file, name), f"{path}: {name}")


def _check_archive(path: Path, md5: str, content: str) -> None:
    """DataError unless the archive has the published bytes, or the published images in it."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5:
            return
    found = content_digest(path)
    if found != content:
        raise DataError(
            f"{path} holds other images than the published archive (content {found}, not {content}); "
            "put the published archive there"
        )
