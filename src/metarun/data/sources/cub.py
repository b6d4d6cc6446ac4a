"""CUB-200-2011: 200 kinds of birds (Wah, Branson, Welinder, Perona, Belongie 2011)."""

from __future__ import annotations

from collections.abc import Mapping
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
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pool import DataError, Say

CLASS_LISTS = {"meta_dataset": "cub_140", "closer_look": "cub_100"}
CUB_FOLDER = "CUB_200_2011"


@dataclass(frozen=True)
class Cub(ColourPictures):
    recipe: ClassVar[int] = 1
    folder_name: ClassVar[str] = "cub"
    facts: ClassVar[Facts] = Facts(
        "not stated; its page asks for non-commercial research and education, and says that it does not own the images",
        11_788,
        1_150,
        "https://data.caltech.edu/records/65de6-vp158",
    )
    unpacked: ClassVar[Mapping[str, str]] = {
        **ColourPictures.unpacked,
        "split": "both splits have all 200 classes, and are made after packing",
    }

    md5: str | None
    classes: int
    images: int
    crop: Literal["bounding_box", "none"]
    drop_imagenet_copies: bool
    split: Literal["meta_dataset", "closer_look"]

    @property
    def list_name(self) -> str:
        return CLASS_LISTS[self.split]

    def editions(self) -> tuple[Edition, ...]:
        return archive_or_folder(self.mirrors, f"{CUB_FOLDER}.tgz", self.md5, CUB_FOLDER)

    def contents(self, say: Say) -> Contents:
        path = data_folder(self) / fetch_edition(self, say).files[0].path
        box_of = _bounding_boxes(path, say)
        classes = tar_archive.files_by_class(box_of, lambda name: name.split("/")[-2])
        tar_archive.check_published_counts(path, classes, self.classes, self.images)
        if self.drop_imagenet_copies:
            dropped = {name for names in class_list("cub_imagenet_copies").values() for name in names}
            classes = {
                name: [file for file in files if Path(file).name not in dropped] for name, files in classes.items()
            }
        return tar_archive.picture_contents(path, classes, self.size, partial(self._decode, path, box_of), say)

    def _decode(self, path: Path, box_of: dict[str, Box], name: str, content: bytes) -> NDArray[np.uint8]:
        box = box_of[name] if self.crop == "bounding_box" else WHOLE_PICTURE
        return CropDecoder(self.size, 3, self.resize, self.fit, box).decode(content, f"{path}: {name}")


def _bounding_boxes(path: Path, say: Say) -> dict[str, Box]:
    """The bounding box of each file, from images.txt ("1 CLASS/IMAGE.jpg") and bounding_boxes.txt.

    A line of bounding_boxes.txt is "1 60.0 27.0 325.0 304.0": left, top, width, height.
    """
    names = (f"{CUB_FOLDER}/images.txt", f"{CUB_FOLDER}/bounding_boxes.txt")
    images, boxes = tar_archive.read_texts(path, names, say)
    try:
        name_of = dict(line.split() for line in images.splitlines())
        sides = {number: map(round, map(float, numbers)) for number, *numbers in map(str.split, boxes.splitlines())}
        found = {
            number: (left, top, left + width, top + height) for number, (left, top, width, height) in sides.items()
        }
        return {f"{CUB_FOLDER}/images/{name}": found[number] for number, name in name_of.items()}
    except (ValueError, KeyError) as problem:
        reason = f"images.txt and bounding_boxes.txt cannot be read together ({problem})"
        raise DataError(f"{path}: {reason}; put the published data there") from problem
