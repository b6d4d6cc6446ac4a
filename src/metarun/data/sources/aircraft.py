"""FGVC-Aircraft 2013b: 100 variants of aircraft, 100 images of each (Maji, Rahtu, Kannala, Blaschko, Vedaldi 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, archive_or_folder, data_folder, fetch_edition
from metarun.data.read import tar_archive
from metarun.data.read.tar_archive import WHOLE_PICTURE, Box, CropDecoder
from metarun.data.sources.packed_source import ColourPictures
from metarun.data.store.contents import Contents
from metarun.data.store.pool import DataError, Say

AIRCRAFT_FOLDER = "fgvc-aircraft-2013b"
VARIANT_LISTS = ("images_variant_trainval.txt", "images_variant_test.txt")
ABOVE_BANNER = (0, 0, 0, -20)  # pixels; the copyright line at the bottom, Maji 2013


@dataclass(frozen=True)
class Aircraft(ColourPictures):
    recipe: ClassVar[int] = 1
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
        return archive_or_folder(self.mirrors, f"{AIRCRAFT_FOLDER}.tar.gz", self.md5, AIRCRAFT_FOLDER)

    def contents(self, say: Say) -> Contents:
        path = data_folder(self) / fetch_edition(self, say).files[0].path
        variant_of, box_of = _variants_and_boxes(path, say)
        classes = tar_archive.files_by_class(variant_of, variant_of.__getitem__)
        tar_archive.check_published_counts(path, classes, self.classes, self.images)
        return tar_archive.picture_contents(path, classes, self.size, partial(self._decode, path, box_of), say)

    def _decode(self, path: Path, box_of: dict[str, Box], name: str, content: bytes) -> NDArray[np.uint8]:
        box = {"bounding_box": box_of[name], "banner": ABOVE_BANNER, "none": WHOLE_PICTURE}[self.crop]
        return CropDecoder(self.size, 3, self.resize, self.fit, box).decode(content, f"{path}: {name}")


def _variants_and_boxes(path: Path, say: Say) -> tuple[dict[str, str], dict[str, Box]]:
    """Variant and bounding box of each file, from lines "0787226 707-320" and "0787226 20 90 1000 400".

    A box is left, top, right, bottom, and its first pixel is (1, 1).
    """
    names = [f"{AIRCRAFT_FOLDER}/data/{name}" for name in (*VARIANT_LISTS, "images_box.txt")]
    trainval, test, boxes = (text.splitlines() for text in tar_archive.read_texts(path, names, say))
    try:
        variants = [line.split(" ", 1) for line in trainval + test]
        variant_of = {_image_name(number): name.strip() for number, name in variants}
        sides = {_image_name(number): map(int, numbers) for number, *numbers in map(str.split, boxes)}
        found = {name: (left - 1, top - 1, right, bottom) for name, (left, top, right, bottom) in sides.items()}
        return variant_of, {name: found[name] for name in variant_of}
    except (ValueError, LookupError) as problem:
        reason = f"{', '.join(VARIANT_LISTS)} and images_box.txt cannot be read together ({problem})"
        raise DataError(f"{path}: {reason}; put the published data there") from problem


def _image_name(number: str) -> str:
    return f"{AIRCRAFT_FOLDER}/data/images/{number}.jpg"
