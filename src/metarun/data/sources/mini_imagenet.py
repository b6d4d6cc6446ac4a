"""mini-ImageNet: 100 classes of ImageNet with 600 images each (Vinyals 2016), in the split of Ravi, Larochelle 2017."""

from __future__ import annotations

import csv
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read.images import map_in_order
from metarun.data.read.safe_pickle import as_record, as_text, as_whole_numbers, load_pickle, read_pickle
from metarun.data.sources.packed_source import ColourPictures
from metarun.data.splits import SPLITS
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pool import DataError, Say

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

RAVI_LIST = "mini_imagenet_ravi"
MINI_IMAGENET_ARCHIVE = "mini-imagenet.tar.gz"
LONG_NAMES = {"train": "train", "val": "validation", "test": "test"}  # of the splits in learn2learn's copies


@dataclass(frozen=True)
class MiniImagenet(ColourPictures):
    recipe: ClassVar[int] = 1
    facts: ClassVar[Facts] = Facts(
        "ImageNet's terms: non-commercial research and education", 60000, 1270, "https://zenodo.org/records/7978538"
    )
    folder_name: ClassVar[str] = "mini-imagenet"

    archive_md5: str  # of mini-imagenet.tar.gz
    images_per_class: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images_per_class < 1:
            raise ValueError(f"images_per_class={self.images_per_class}: use 1 or more; published are 600")

    @property
    def list_name(self) -> str:
        return RAVI_LIST

    def editions(self) -> tuple[Edition, ...]:
        long_names = [f"mini-imagenet-cache-{name}.pkl" for name in LONG_NAMES.values()]
        return (
            Edition("cache", tuple(PublishedFile(f"mini-imagenet-cache-{split}.pkl") for split in SPLITS)),
            Edition("validation", tuple(PublishedFile(name, mirror_urls(self.mirrors, name)) for name in long_names)),
            Edition("archive", (PublishedFile(MINI_IMAGENET_ARCHIVE, md5=self.archive_md5),)),
            Edition("csv", (*(PublishedFile(f"{split}.csv") for split in SPLITS), PublishedFile("images/"))),
        )

    def contents(self, say: Say) -> Contents:
        edition, folder = fetch_edition(self, say), data_folder(self)
        # split after split, so that one file at a time is in memory
        names = tuple(name for split in SPLITS for name in sorted(class_list(RAVI_LIST)[split]))
        rows = self._from_csv(folder) if edition.name == "csv" else self._from_pickles(folder, edition)
        return Contents(names, (self.images_per_class,) * len(names), (3, self.size, self.size), rows)

    def _from_pickles(self, folder: Path, edition: Edition) -> Iterator[NDArray[np.uint8]]:
        for split in SPLITS:
            images, classes, where = self._pickled_split(folder, edition, split)
            _check_split(set(classes), split, where)
            for name in sorted(classes):
                rows = list(dict.fromkeys(as_whole_numbers(classes[name], f"{where}: class {name}")))
                if len(rows) != self.images_per_class:
                    raise DataError(f"{where}: class {name} has {len(rows)} images, not {self.images_per_class}")
                if min(rows) < 0 or max(rows) >= len(images):
                    raise DataError(f"{where}: class {name} names images {min(rows)} to {max(rows)} of {len(images)}")
                yield from (self.decoder.convert_array(images[row]) for row in rows)
            del images  # before the next 0.2 to 0.8 GB are read

    def _pickled_split(
        self, folder: Path, edition: Edition, split: Split
    ) -> tuple[NDArray[np.uint8], dict[str, object], str]:
        """All images of a split, the numbers of each class's images, and where they are from."""
        if edition.name == "archive":
            where = f"{folder / MINI_IMAGENET_ARCHIVE}: mini-imagenet-cache-{split}.pkl"
            found = _pickle_in_archive(folder / MINI_IMAGENET_ARCHIVE, split)
        else:
            path = folder / edition.files[SPLITS.index(split)].path
            where, found = str(path), load_pickle(path, "bytes")  # latin1 would copy the images
        record = as_record(found, ("image_data", "class_dict"), where)
        images, classes = record["image_data"], record["class_dict"]
        if not isinstance(images, np.ndarray) or not isinstance(classes, dict):
            raise DataError(f"{where} has no array image_data and no class_dict; put the published file there")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"{where}: images are {images.dtype} {images.shape}, not uint8 (n, 84, 84, 3)")
        return images, {as_text(name): rows for name, rows in classes.items()}, where

    def _from_csv(self, folder: Path) -> Iterator[NDArray[np.uint8]]:
        """From Ravi's lists train.csv, val.csv, test.csv, and the images of ImageNet that they name."""
        split_of: dict[str, Split] = {}
        paths: list[Path] = []
        there = set(os.listdir(folder / "images"))
        for split in SPLITS:
            where = folder / f"{split}.csv"
            classes = _csv_classes(where)
            for name in classes:
                if name in split_of:
                    raise DataError(f"{where}: class {name} is in {split_of[name]}.csv too; a class has one split")
                split_of[name] = split
            _check_split(set(classes), split, str(where))
            for name, images in sorted(classes.items()):
                if len(set(images)) != self.images_per_class:
                    raise DataError(f"{where}: class {name} has {len(set(images))} images, not {self.images_per_class}")
                missing = sorted(set(images) - there)
                if missing:
                    raise DataError(f"{folder / 'images'} has no {missing[0]}, which {where.name} lists")
                paths += (folder / "images" / image for image in sorted(images))
        decoder = self.decoder
        return map_in_order(paths, lambda path: decoder.decode(path.read_bytes(), str(path)))


def _check_split(found: set[str], split: Split, where: str) -> None:
    """DataError unless the classes of a file are those of its split."""
    lists = class_list(RAVI_LIST)
    for name in sorted(found ^ set(lists[split])):
        if name not in found:
            raise DataError(f"{where}: class {name} of the {split} split is missing; put the published file there")
        owner = next((other for other in SPLITS if name in lists[other]), None)
        reason = f"belongs to the {owner} split" if owner else "is none of mini-ImageNet's"
        raise DataError(f"{where}: class {name} {reason}; put the published file there")


def _csv_classes(path: Path) -> dict[str, list[str]]:
    """The images of each class, from lines of filename,label."""
    classes: dict[str, list[str]] = {}
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                classes.setdefault(line["label"], []).append(line["filename"])
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path} is no list of filename,label ({problem}); put the published one there") from problem
    return classes


def _pickle_in_archive(path: Path, split: Split) -> object:
    """One of the three pickles, read inside the archive."""
    names = {f"mini-imagenet-cache-{name}.pkl" for name in (split, LONG_NAMES[split])}
    try:
        with tarfile.open(path, "r|*") as tar:
            member = next((member for member in tar if member.name.rpartition("/")[2] in names), None)
            file = tar.extractfile(member) if member else None
            if file:
                return read_pickle(file, f"{path}: {min(names)}", "bytes")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as problem:
        raise DataError(f"{path} is no readable tar archive ({problem}); put the published one there") from problem
    raise DataError(f"{path} holds no {min(names)}; put the published archive there")
