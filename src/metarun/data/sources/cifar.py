"""CIFAR-100 (Krizhevsky 2009) as CIFAR-FS (Bertinetto 2019) and as FC100 (Oreshkin 2018): 100 classes of 600 images."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read.images import PictureDecoder
from metarun.data.read.safe_pickle import as_record, as_text, as_whole_numbers, read_pickle
from metarun.data.read.tar_archive import tar_members
from metarun.data.read.zip_archive import open_zip, zip_bytes, zip_names
from metarun.data.sources.packed_source import PublishedPictures
from metarun.data.splits import SPLITS
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Pack
from metarun.data.store.pool import DataError, Say, Splits

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

CIFAR_SIDE = 32  # pixels, as published
PYTHON_FILES = ("train", "test", "meta")  # of cifar-100-python
FC100_PICKLES = {split: f"FC100_{split}.pickle" for split in SPLITS}
PNG_NAME = re.compile(r"(?:.*/)?data/([^/]+)/[^/]+\.png")
LIST_NAME = re.compile(r"(?:.*/)?splits/bertinetto/(train|val|test)\.txt")

Images = NDArray[np.uint8]  # [n, 32, 32, 3]


@dataclass(frozen=True)
class Cifar(PublishedPictures):
    recipe: ClassVar[int] = 1
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors", "zip_mirrors")
    facts: ClassVar[Facts] = Facts("not stated", 60000, 169, "https://www.cs.toronto.edu/~kriz/cifar.html")
    folder_name: ClassVar[str] = "cifar100"  # of both sets: one download serves both
    unpacked: ClassVar[Mapping[str, str]] = {
        **PublishedPictures.unpacked,
        "zip_mirrors": "the same published files whoever sends them",
    }

    zip_mirrors: tuple[str, ...]  # folders on the web with cifar100.zip and fc100.zip; `mirrors`: with the tar archive
    archive_md5: str
    train_md5: str  # of the three files in the archive, which are checked whoever packed it
    test_md5: str
    meta_md5: str
    images_per_class: int
    split: Literal["cifar_fs", "fc100"]  # in the key: FC100's pickles do not name their classes, so they differ
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images_per_class < 1:
            raise ValueError(f"images_per_class={self.images_per_class}: use 1 or more; published are 600")

    @property
    def list_name(self) -> str:
        return self.split

    @property
    def pack_name(self) -> str:
        return self.split

    def editions(self) -> tuple[Edition, ...]:
        tar, png, zipped = "cifar-100-python.tar.gz", "cifar100.zip", "fc100.zip"
        found = (
            Edition("unpacked", tuple(PublishedFile(f"cifar-100-python/{name}") for name in PYTHON_FILES)),
            Edition("python", (PublishedFile(tar, mirror_urls(self.mirrors, tar), self.archive_md5),)),
            Edition("png", (PublishedFile(png, mirror_urls(self.zip_mirrors, png)),)),
        )
        if self.split == "cifar_fs":
            return found
        pickles = Edition("pickles", tuple(PublishedFile(name) for name in FC100_PICKLES.values()))
        return (*found, pickles, Edition("zip", (PublishedFile(zipped, mirror_urls(self.zip_mirrors, zipped)),)))

    def split_numbers(self, pack: Pack) -> Splits:
        if not _is_numbered(pack.names[0]):
            return pack.numbers(class_list(self.split), f"data.split={self.split}")
        lists = {split: [name for name in pack.names if name.startswith(f"{split}/")] for split in SPLITS}
        return pack.numbers(lists, f"data.split={self.split}")

    def contents(self, say: Say) -> Contents:
        edition = fetch_edition(self, say)
        where = data_folder(self) / edition.files[0].path
        readers = {
            "unpacked": self._from_python_folder,
            "python": self._from_python_archive,
            "png": self._from_png_archive,
            "pickles": self._from_fc100_pickles,
            "zip": self._from_fc100_archive,
        }
        images = readers[edition.name](where)
        for name, of_class in images.items():
            if len(of_class) != self.images_per_class:
                raise DataError(f"{where}: class {name} has {len(of_class)} images, not {self.images_per_class}")
        names = tuple(sorted(images))
        groups = tuple("" if _is_numbered(name) else name.partition("/")[0] for name in names)
        counts = tuple(len(images[name]) for name in names)
        return Contents(names, counts, (3, self.size, self.size), self._rows(images, names), groups)

    def _rows(self, images: Mapping[str, Images], names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        """The images of a class in order of their bytes, which is the same for every edition."""
        decoder = PictureDecoder(self.size, 3, self.resize)
        for name in names:
            for image in sorted(images[name], key=lambda image: image.tobytes()):
                yield decoder.convert_array(image)

    def _from_python_folder(self, where: Path) -> dict[str, Images]:
        """From the folder cifar-100-python."""
        return self._from_python_files(
            {name: (where.parent / name).read_bytes() for name in PYTHON_FILES}, where.parent
        )

    def _from_python_archive(self, where: Path) -> dict[str, Images]:
        """From cifar-100-python.tar.gz."""
        contents: dict[str, bytes] = {}
        for member in tar_members(where):
            name = member.name.rpartition("/")[2]
            if name in PYTHON_FILES:
                contents[name] = member.read()
        return self._from_python_files(contents, where)

    def _from_python_files(self, contents: Mapping[str, bytes], where: Path) -> dict[str, Images]:
        for name, expected in zip(PYTHON_FILES, (self.train_md5, self.test_md5, self.meta_md5), strict=True):
            found = hashlib.md5(contents.get(name, b""), usedforsecurity=False).hexdigest()
            if found != expected:
                told = f"{name} in it has md5 {found}, not {expected}" if name in contents else f"has no {name} in it"
                raise DataError(f"{where}: {told}; put the published one there")
        label_keys = ("fine_label_names", "coarse_label_names")
        meta = _pickled_record(contents["meta"], label_keys, f"{where}: meta")
        fine, coarse = (_texts(meta[key], f"{where}: meta: {key}") for key in label_keys)
        blocks: list[Images] = []
        names: list[str] = []
        for file in ("train", "test"):
            data = _pickled_record(contents[file], ("data", "fine_labels", "coarse_labels"), f"{where}: {file}")
            planes = np.asarray(data["data"]).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
            labels, groups = (
                as_whole_numbers(data[key], f"{where}: {file}: {key}") for key in ("fine_labels", "coarse_labels")
            )
            blocks.append(planes.transpose(0, 2, 3, 1))
            names += [f"{coarse[group]}/{fine[label]}" for label, group in zip(labels, groups, strict=True)]
        return self._check_classes(_images_by_class(np.concatenate(blocks), names, where), where)

    def _from_png_archive(self, where: Path) -> dict[str, Images]:
        """From cifar100.zip: cifar100/data/CLASS/*.png, and the classes of CIFAR-FS in cifar100/splits/bertinetto."""
        full_name = {name.partition("/")[2]: name for names in class_list("cifar_fs").values() for name in names}
        decoder = PictureDecoder(CIFAR_SIDE, 3, self.resize)
        images: dict[str, list[Images]] = {}
        with open_zip(where) as file:
            for member in zip_names(file):
                found = PNG_NAME.fullmatch(member)
                if found:
                    name = full_name.get(found[1], found[1])
                    picture = decoder.decode(zip_bytes(file, member), f"{where}: {member}")
                    images.setdefault(name, []).append(picture.transpose(1, 2, 0))
            self._check_lists(file, where)
        return self._check_classes({name: np.stack(found) for name, found in images.items()}, where)

    def _check_lists(self, file: zipfile.ZipFile, where: Path) -> None:
        """DataError unless the lists in the archive are those of CIFAR-FS."""
        for member in zip_names(file):
            found = LIST_NAME.fullmatch(member)
            if found:
                listed = {name.partition("/")[2] for name in class_list("cifar_fs")[cast("Split", found[1])]}
                other = sorted(listed ^ set(zip_bytes(file, member).decode("utf-8", "replace").split()))
                if other:
                    reason = f"{member} and the published {found[1]} split differ in {', '.join(other[:3])}"
                    raise DataError(f"{where}: {reason}; put the published archive there")

    def _check_classes(self, images: dict[str, Images], where: Path) -> dict[str, Images]:
        """The same images; DataError unless their classes are those of CIFAR-100."""
        other = set(images) ^ {name for names in class_list("cifar_fs").values() for name in names}
        if other:
            name = min(other)
            reason = f"has a class {name} that is not of CIFAR-100" if name in images else f"has no class {name}"
            raise DataError(f"{where} {reason}; put the published one there")
        return images

    def _from_fc100_archive(self, where: Path) -> dict[str, Images]:
        """From fc100.zip, which holds the three pickles."""
        with open_zip(where) as file:
            member_of = {name.rpartition("/")[2]: name for name in zip_names(file)}
            missing = [name for name in FC100_PICKLES.values() if name not in member_of]
            if missing:
                raise DataError(f"{where} holds no {missing[0]}; put the published archive there")
            contents = {split: zip_bytes(file, member_of[name]) for split, name in FC100_PICKLES.items()}
            return self._from_fc100_files(contents, where)

    def _from_fc100_pickles(self, where: Path) -> dict[str, Images]:
        """From FC100_train.pickle, FC100_val.pickle, FC100_test.pickle."""
        contents = {split: (where.parent / name).read_bytes() for split, name in FC100_PICKLES.items()}
        return self._from_fc100_files(contents, where.parent)

    def _from_fc100_files(self, contents: Mapping[Split, bytes], where: Path) -> dict[str, Images]:
        """Classes get CIFAR-100's names if the labels of each split are those of CIFAR-100, else numbers."""
        lists = class_list("fc100")
        fine = sorted((name for names in lists.values() for name in names), key=lambda name: name.partition("/")[2])
        data: dict[Split, Images] = {}
        labels: dict[Split, list[int]] = {}
        for split, content in contents.items():
            about = f"{where}: {FC100_PICKLES[split]}"
            record = _pickled_record(content, ("data", "labels"), about)
            data[split], labels[split] = np.asarray(record["data"]), as_whole_numbers(record["labels"], about)
        named = all({fine[n] for n in set(labels[split]) if 0 <= n < len(fine)} == set(lists[split]) for split in lists)
        images: dict[str, Images] = {}
        for split in contents:
            distinct = sorted(set(labels[split]))
            if len(distinct) != len(lists[split]):
                file = FC100_PICKLES[split]
                raise DataError(f"{where}: {file} has {len(distinct)} classes, not {len(lists[split])}")
            name_of = {n: fine[n] if named else f"{split}/{number:02d}" for number, n in enumerate(distinct)}
            images |= _images_by_class(data[split], [name_of[n] for n in labels[split]], where)
        return images


def _is_numbered(name: str) -> bool:
    """Whether a class is called "train/07", for want of a name."""
    return name.partition("/")[0] in SPLITS


def _pickled_record(content: bytes, keys: Sequence[str], where: str) -> dict[str, object]:
    return as_record(read_pickle(io.BytesIO(content), where, "bytes"), keys, where)


def _texts(words: object, where: str) -> list[str]:
    if not isinstance(words, list):
        raise DataError(f"{where} is no list; put the published file there")
    return [as_text(word) for word in words]


def _images_by_class(images: NDArray[np.generic], names: Sequence[str], where: Path) -> dict[str, Images]:
    wanted = (len(names), CIFAR_SIDE, CIFAR_SIDE, 3)
    if images.dtype != np.uint8 or images.shape != wanted:
        reason = f"{images.dtype} {images.shape} for {len(names)} labels, not uint8 {wanted}"
        raise DataError(f"{where}: images are {reason}; put the published one there")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: images[of_class].astype(np.uint8, copy=False) for name, of_class in rows.items()}
