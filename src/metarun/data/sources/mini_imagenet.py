"""mini-ImageNet: 100 classes of ImageNet with 600 images each (Vinyals 2016), in the split of Ravi, Larochelle 2017."""

from __future__ import annotations

import csv
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import ColourPictures, Edition, Facts, File, at, home, obtain
from metarun.data.read.images import Look, in_order
from metarun.data.read.safe_pickle import load, read
from metarun.data.splits import SPLITS
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import DataError, Pool, Say

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
LIST = "mini_imagenet_ravi"
ARCHIVE = "mini-imagenet.tar.gz"
VALIDATION = {"train": "train", "val": "validation", "test": "test"}  # as learn2learn's copies are called


@dataclass(frozen=True)
class MiniImagenet(ColourPictures):
    facts: ClassVar[Facts] = Facts(
        "ImageNet's terms: non-commercial research and education", 60000, 1270, "https://zenodo.org/records/7978538"
    )
    folder_name: ClassVar[str] = "mini-imagenet"

    archive_md5: str  # of mini-imagenet.tar.gz
    images_per_class: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images_per_class < 1:
            raise ValueError(f"images_per_class={self.images_per_class}: needs 1 or more; published are 600")

    def lists(self) -> dict[Split, list[str]]:
        return class_list(LIST)

    def editions(self) -> tuple[Edition, ...]:
        named = [f"mini-imagenet-cache-{name}.pkl" for name in VALIDATION.values()]
        return (
            Edition("cache", tuple(File(f"mini-imagenet-cache-{split}.pkl") for split in SPLITS)),
            Edition("validation", tuple(File(name, at(self.mirrors, name)) for name in named)),
            Edition("archive", (File(ARCHIVE, md5=self.archive_md5),)),
            Edition("csv", (*(File(f"{split}.csv") for split in SPLITS), File("images/"))),
        )

    def load(self, say: Callable[[str], None]) -> Pool:
        key = digest(RECIPE, self.images_per_class, self.size, self.resize, self.fit)
        pack = packed(f"mini_imagenet-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(class_list(LIST), f"splits/{LIST}.json"), self.duplicates, say)

    def _contents(self, say: Say) -> Contents:
        edition, folder = obtain(self, say), home(self)
        # split after split, so that one file at a time is in memory
        names = tuple(name for split in SPLITS for name in sorted(class_list(LIST)[split]))
        rows = self._from_csv(folder) if edition.name == "csv" else self._from_pickles(folder, edition)
        return Contents(names, (self.images_per_class,) * len(names), (3, self.size, self.size), rows)

    def _from_pickles(self, folder: Path, edition: Edition) -> Iterator[NDArray[np.uint8]]:
        look = Look(self.size, 3, self.resize, self.fit)
        for split in SPLITS:
            images, classes, where = self._pickle(folder, edition, split)
            _compare(set(classes), split, where)
            for name in sorted(classes):
                rows = list(dict.fromkeys(_numbers(classes[name], f"{where}: class {name}")))
                if len(rows) != self.images_per_class:
                    raise DataError(f"{where}: class {name} has {len(rows)} images, not {self.images_per_class}")
                if min(rows) < 0 or max(rows) >= len(images):
                    raise DataError(f"{where}: class {name} names images {min(rows)} to {max(rows)} of {len(images)}")
                yield from (_shaped(images[row], look) for row in rows)
            del images  # before the next 0.2 to 0.8 GB

    def _pickle(self, folder: Path, edition: Edition, split: Split) -> tuple[NDArray[np.uint8], dict[str, Any], str]:
        if edition.name == "archive":
            where = f"{folder / ARCHIVE}: mini-imagenet-cache-{split}.pkl"
            found = _in_archive(folder / ARCHIVE, split)
        else:
            path = folder / edition.files[SPLITS.index(split)].path
            where, found = str(path), load(path, "bytes")  # latin1 would copy the images
        record = {_text(key): value for key, value in found.items()} if isinstance(found, dict) else {}
        images, classes = record.get("image_data"), record.get("class_dict")
        if not isinstance(images, np.ndarray) or not isinstance(classes, dict):
            raise DataError(f"{where} has no image_data and class_dict; put the published file there")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"{where}: images are {images.dtype} {images.shape}, not uint8 (n, 84, 84, 3)")
        return images, {_text(name): rows for name, rows in classes.items()}, where

    def _from_csv(self, folder: Path) -> Iterator[NDArray[np.uint8]]:
        """Ravi's lists of images, and the images of ImageNet that they name."""
        owner: dict[str, Split] = {}
        jobs: list[Path] = []
        there = set(os.listdir(folder / "images"))
        for split in SPLITS:
            where = folder / f"{split}.csv"
            classes = _listed(where)
            for name in classes:
                if name in owner:
                    raise DataError(f"{where}: class {name} is in {owner[name]}.csv too; a class has one split")
                owner[name] = split
            _compare(set(classes), split, str(where))
            for name, images in sorted(classes.items()):
                if len(set(images)) != self.images_per_class:
                    raise DataError(f"{where}: class {name} has {len(set(images))} images, not {self.images_per_class}")
                missing = sorted(set(images) - there)
                if missing:
                    raise DataError(f"{folder / 'images'} has no {missing[0]}, which {where.name} lists")
                jobs += (folder / "images" / image for image in sorted(images))
        look = Look(self.size, 3, self.resize, self.fit)
        return in_order(jobs, lambda path: look.of(path.read_bytes(), str(path)))


def _compare(found: set[str], split: Split, where: str) -> None:
    """A file's classes are those of its split."""
    lists = class_list(LIST)
    for name in sorted(found ^ set(lists[split])):
        if name not in found:
            raise DataError(f"{where}: class {name} of the {split} split is missing; put the published file there")
        owner = next((other for other in SPLITS if name in lists[other]), None)
        told = f"belongs to the {owner} split" if owner else "is none of mini-ImageNet's"
        raise DataError(f"{where}: class {name} {told}; put the published file there")


def _listed(path: Path) -> dict[str, list[str]]:
    """A file of filename,label lines by label."""
    classes: dict[str, list[str]] = {}
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                classes.setdefault(line["label"], []).append(line["filename"])
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path} is no list of filename,label ({problem}); put the published one there") from problem
    return classes


def _in_archive(path: Path, split: Split) -> object:
    """One of the three pickles, read where it lies."""
    names = {f"mini-imagenet-cache-{name}.pkl" for name in (split, VALIDATION[split])}
    try:
        with tarfile.open(path, "r|*") as tar:
            member = next((member for member in tar if member.name.rpartition("/")[2] in names), None)
            file = tar.extractfile(member) if member else None
            if file:
                return read(file, f"{path}: {min(names)}", "bytes")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as problem:
        raise DataError(f"{path} is no readable tar archive ({problem}); put the published one there") from problem
    raise DataError(f"{path} holds no {min(names)}; put the published archive there")


def _numbers(rows: Any, where: str) -> list[int]:
    try:
        return [int(row) for row in rows]
    except (TypeError, ValueError) as problem:
        raise DataError(f"{where} has no list of image numbers; put the published file there") from problem


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _shaped(image: NDArray[np.uint8], look: Look) -> NDArray[np.uint8]:
    if image.shape[:2] == (look.size, look.size):
        return np.ascontiguousarray(image.transpose(2, 0, 1))  # a view would keep all images of its file in memory
    from PIL import Image  # late: a warm start reads no picture

    return look.shaped(Image.fromarray(image))
