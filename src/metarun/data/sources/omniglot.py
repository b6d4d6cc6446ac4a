"""Omniglot: 1623 handwritten characters of 50 alphabets, each by 20 drawers (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, File, at, home, obtain
from metarun.data.read import zip_archive
from metarun.data.read.images import Filter, Look
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Duplicates, digest, packed
from metarun.data.store.pool import DataError, Pool, Say

if TYPE_CHECKING:  # types.py imports torch
    from PIL import Image

    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
PAGE = "https://github.com/brendenlake/omniglot/tree/master/python"


@dataclass(frozen=True)
class Ink(Look):
    """A drawing, white on black before it is resized: the filter's rounding is not the same both ways."""

    def shaped(self, picture: Image.Image) -> NDArray[np.uint8]:
        from PIL import ImageOps  # late: a warm start reads no picture

        return super().shaped(ImageOps.invert(picture.convert("L")))


@dataclass(frozen=True)
class Omniglot:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors")  # where the data lies, which is no part of an experiment
    folder_name: ClassVar[str] = "omniglot"
    facts: ClassVar[Facts] = Facts(licence="MIT", images=32_460, megabytes=14, page=PAGE)

    root: str | None  # folder that holds omniglot/*.zip; None: METARUN_DATA, else data/ in the cache folder
    mirrors: tuple[str, ...]  # folders on the web that hold the two archives
    background_md5: str
    evaluation_md5: str
    background_content: str  # zip_archive.content_digest, which an archive that was packed anew keeps
    evaluation_content: str
    background_classes: int
    evaluation_classes: int
    images_per_class: int
    size: int  # pixels
    resize: Filter
    invert: bool  # True: ink 255 on 0; False: as published, ink 0 on 255
    split: Literal["finn", "lake", "vinyals"]
    split_seed: int
    val_classes: int
    finn_test_classes: int
    duplicates: Duplicates
    mean: float
    std: float
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if min(self.counts().values()) < 1:
            sizes = ", ".join(f"{count} {split}" for split, count in self.counts().items())
            raise ValueError(f"val_classes={self.val_classes}: leaves {sizes} classes; each split needs 1 or more")

    def counts(self) -> dict[Split, int]:
        """Classes of each split, before rotations."""
        if self.split == "vinyals":
            return {split: len(names) for split, names in class_list("omniglot_vinyals").items()}
        total = self.background_classes + self.evaluation_classes
        test = self.finn_test_classes if self.split == "finn" else self.evaluation_classes
        return {"train": total - self.val_classes - test, "val": self.val_classes, "test": test}

    def editions(self) -> tuple[Edition, ...]:
        sums = {"images_background.zip": self.background_md5, "images_evaluation.zip": self.evaluation_md5}
        return (Edition("published", tuple(File(name, at(self.mirrors, name), md5) for name, md5 in sums.items())),)

    def load(self, say: Say) -> Pool:
        archives = (self.background_content, self.evaluation_content, self.background_classes, self.evaluation_classes)
        key = digest(RECIPE, *archives, self.images_per_class, self.size, self.resize, self.invert)
        pack = packed(f"omniglot-{key}", lambda: self._contents(say), say)
        if self.split == "vinyals":
            splits = pack.numbers(class_list("omniglot_vinyals"), "data.split=vinyals")
        else:
            splits = self._drawn(pack.names)
        return pack.pool(splits, self.duplicates, say)

    def _drawn(self, names: tuple[str, ...]) -> dict[Split, tuple[int, ...]]:
        """finn: all classes at random. lake: the background classes at random, and the evaluation classes for test."""
        mixed = len(names) if self.split == "finn" else self.background_classes
        draw = random.Random(self.split_seed).random  # of Python's generators only random() is promised never to change
        keys = {number: draw() for number in sorted(range(mixed), key=names.__getitem__)}
        order = [*sorted(keys, key=keys.__getitem__), *range(mixed, len(names))]
        splits: dict[Split, tuple[int, ...]] = {}
        for split, count in self.counts().items():
            splits[split], order = tuple(sorted(order[:count])), order[count:]
        return splits

    def _contents(self, say: Say) -> Contents:
        paths = [home(self) / file.path for file in obtain(self, say).files]
        contents = (self.background_content, self.evaluation_content)
        sums = (self.background_md5, self.evaluation_md5)
        expected = (self.background_classes, self.evaluation_classes)
        found = [self._classes(path, count) for path, count in zip(paths, expected, strict=True)]
        for path, md5, content in zip(paths, sums, contents, strict=True):
            _check(path, md5, content)
        names = tuple(name for classes in found for name in classes)
        groups = tuple(name.partition("/")[0] for name in names)
        counts = (self.images_per_class,) * len(names)
        return Contents(names, counts, (1, self.size, self.size), self._rows(paths, found), groups)

    def _classes(self, path: Path, expected: int) -> dict[str, list[str]]:
        """An archive's images by class: <anything>/Alphabet/characterNN/IIII_DD.png is of Alphabet/characterNN."""
        with zip_archive.opened(path) as file:
            images = [name for name in zip_archive.members(file) if name.endswith(".png")]
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
        look = (Ink if self.invert else Look)(self.size, 1, self.resize)
        for path, classes in zip(paths, found, strict=True):
            with zip_archive.opened(path) as file:
                for name in (name for images in classes.values() for name in images):
                    yield look.of(zip_archive.content(file, name), f"{path}: {name}")


def _check(path: Path, md5: str, content: str) -> None:
    """An archive is what was published if its bytes are, or else the images in it."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5:
            return
    found = zip_archive.content_digest(path)
    if found != content:
        told = f"{path} holds other images than the published archive (content {found}, not {content})"
        raise DataError(f"{told}; put the published archive there")
