"""CUB-200-2011: 200 kinds of birds (Wah, Branson, Welinder, Perona, Belongie 2011)."""

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
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import DataError, Pool

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
LISTS = {"meta_dataset": "cub_140", "closer_look": "cub_100"}
FOLDER = "CUB_200_2011"
WHOLE = (0, 0, 0, 0)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Cub(ColourPictures):
    folder_name: ClassVar[str] = "cub"
    facts: ClassVar[Facts] = Facts(
        "not stated; its page asks for non-commercial research and education, and says that it does not own the images",
        11_788,
        1_150,
        "https://data.caltech.edu/records/65de6-vp158",
    )

    md5: str | None
    classes: int
    images: int
    crop: Literal["bounding_box", "none"]
    drop_imagenet_copies: bool
    split: Literal["meta_dataset", "closer_look"]

    def lists(self) -> dict[Split, list[str]]:
        return class_list(LISTS[self.split])

    def editions(self) -> tuple[Edition, ...]:
        return tarred(self.mirrors, f"{FOLDER}.tgz", self.md5, FOLDER)

    def load(self, say: Callable[[str], None]) -> Pool:
        data = (self.md5, self.classes, self.images, self.drop_imagenet_copies)
        key = digest(RECIPE, *data, self.crop, self.size, self.resize, self.fit)
        pack = packed(f"cub-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(self.lists(), f"data.split={self.split}"), self.duplicates, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        path = home(self) / obtain(self, say).files[0].path
        boxes = _boxes(path, say)
        classes = tar_archive.classified(boxes, lambda name: name.split("/")[-2])
        tar_archive.counted(path, classes, self.classes, self.images)
        if self.drop_imagenet_copies:
            dropped = {name for names in class_list("cub_imagenet_copies").values() for name in names}
            classes = {
                name: [file for file in files if Path(file).name not in dropped] for name, files in classes.items()
            }
        return tar_archive.contents(path, classes, self.size, partial(self._picture, path, boxes), say)

    def _picture(self, path: Path, boxes: dict[str, Box], name: str, content: bytes) -> NDArray[np.uint8]:
        box = boxes[name] if self.crop == "bounding_box" else WHOLE
        return tar_archive.Window(self.size, 3, self.resize, self.fit, box).of(content, f"{path}: {name}")


def _boxes(path: Path, say: Callable[[str], None]) -> dict[str, Box]:
    """images.txt: "1 CLASS/IMAGE.jpg"; bounding_boxes.txt: "1 60.0 27.0 325.0 304.0", of left, top, width, height."""
    images, boxes = tar_archive.texts_in(path, (f"{FOLDER}/images.txt", f"{FOLDER}/bounding_boxes.txt"), say)
    try:
        names = dict(line.split() for line in images.splitlines())
        sides = {number: map(round, map(float, numbers)) for number, *numbers in map(str.split, boxes.splitlines())}
        found = {
            number: (left, top, left + width, top + height) for number, (left, top, width, height) in sides.items()
        }
        return {f"{FOLDER}/images/{name}": found[number] for number, name in names.items()}
    except (ValueError, KeyError) as problem:
        told = f"images.txt and bounding_boxes.txt cannot be read together ({problem})"
        raise DataError(f"{path}: {told}; put the published data there") from problem
