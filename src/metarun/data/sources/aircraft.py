"""FGVC-Aircraft 2013b: 100 variants of aircraft, 100 images of each (Maji, Rahtu, Kannala, Blaschko, Vedaldi 2013)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import ColourPictures, Edition, Facts, home, obtain, tarred
from metarun.data.read import tar_archive
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import DataError, Pool

if TYPE_CHECKING:  # types.py imports torch
    pass

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
FOLDER = "fgvc-aircraft-2013b"
VARIANTS = ("images_variant_trainval.txt", "images_variant_test.txt")
WHOLE = (0, 0, 0, 0)
ABOVE_BANNER = (0, 0, 0, -20)  # pixels; the copyright line at the bottom, Maji 2013

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Aircraft(ColourPictures):
    folder_name: ClassVar[str] = "aircraft"
    facts: ClassVar[Facts] = Facts(
        "non-commercial research only; the images belong to their photographers",
        10_000,
        2_750,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    )

    md5: str | None
    classes: int
    images: int
    crop: Literal["bounding_box", "banner", "none"]

    def editions(self) -> tuple[Edition, ...]:
        return tarred(self.mirrors, f"{FOLDER}.tar.gz", self.md5, FOLDER)

    def load(self, say: Callable[[str], None]) -> Pool:
        key = digest(RECIPE, self.md5, self.classes, self.images, self.crop, self.size, self.resize, self.fit)
        pack = packed(f"aircraft-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(self.lists(), "the split of Meta-Dataset"), self.duplicates, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        path = home(self) / obtain(self, say).files[0].path
        variant, boxes = _labels(path, say)
        classes = tar_archive.classified(variant, variant.__getitem__)
        tar_archive.counted(path, classes, self.classes, self.images)
        return tar_archive.contents(path, classes, self.size, partial(self._picture, path, boxes), say)

    def _picture(self, path: Path, boxes: dict[str, Box], name: str, content: bytes) -> NDArray[np.uint8]:
        box = {"bounding_box": boxes[name], "banner": ABOVE_BANNER, "none": WHOLE}[self.crop]
        return tar_archive.Window(self.size, 3, self.resize, self.fit, box).of(content, f"{path}: {name}")


def _labels(path: Path, say: Callable[[str], None]) -> tuple[dict[str, str], dict[str, Box]]:
    """Variant and bounding box by file: "0787226 707-320" and "0787226 20 90 1000 400", whose first pixel is (1, 1)."""
    names = [f"{FOLDER}/data/{name}" for name in (*VARIANTS, "images_box.txt")]
    trainval, test, boxes = (text.splitlines() for text in tar_archive.texts_in(path, names, say))
    try:
        variant = {_file(number): name.strip() for number, name in (line.split(" ", 1) for line in trainval + test)}
        sides = {_file(number): map(int, numbers) for number, *numbers in map(str.split, boxes)}
        found = {name: (left - 1, top - 1, right, bottom) for name, (left, top, right, bottom) in sides.items()}
        return variant, {name: found[name] for name in variant}
    except (ValueError, LookupError) as problem:
        told = f"{', '.join(VARIANTS)} and images_box.txt cannot be read together ({problem})"
        raise DataError(f"{path}: {told}; put the published data there") from problem


def _file(number: str) -> str:
    return f"{FOLDER}/data/images/{number}.jpg"
