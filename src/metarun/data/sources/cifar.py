"""CIFAR-100 (Krizhevsky 2009) as CIFAR-FS (Bertinetto 2019) and as FC100 (Oreshkin 2018): 100 classes of 600 images."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, File, at, home, obtain
from metarun.data.read import zip_archive
from metarun.data.read.images import Filter, Look
from metarun.data.read.safe_pickle import read
from metarun.data.read.tar_archive import members
from metarun.data.splits import SPLITS
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Duplicates, digest, packed
from metarun.data.store.pool import DataError, Pool

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
SIDE = 32  # pixels, as published
INSIDE = ("train", "test", "meta")  # of cifar-100-python
PICKLES = {split: f"FC100_{split}.pickle" for split in SPLITS}
PNG = re.compile(r"(?:.*/)?data/([^/]+)/[^/]+\.png")
TXT = re.compile(r"(?:.*/)?splits/bertinetto/(train|val|test)\.txt")

Images = NDArray[np.uint8]  # [n, 32, 32, 3]


@dataclass(frozen=True)
class Cifar:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors", "zip_mirrors")
    facts: ClassVar[Facts] = Facts("not stated", 60000, 169, "https://www.cs.toronto.edu/~kriz/cifar.html")
    folder_name: ClassVar[str] = "cifar100"  # of both sets: one download serves both

    root: str | None  # folder that holds cifar100/; None: METARUN_DATA, else data/ in the cache folder
    mirrors: tuple[str, ...]  # folders on the web that hold cifar-100-python.tar.gz
    zip_mirrors: tuple[str, ...]  # folders on the web that hold cifar100.zip and fc100.zip
    archive_md5: str
    train_md5: str  # of the three files in the archive, which are checked whoever packed it
    test_md5: str
    meta_md5: str
    images_per_class: int
    split: Literal["cifar_fs", "fc100"]
    size: int  # pixels
    resize: Filter
    duplicates: Duplicates
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: needs 1 pixel or more; published are {SIDE}")
        if self.images_per_class < 1:
            raise ValueError(f"images_per_class={self.images_per_class}: needs 1 or more; published are 600")

    def counts(self) -> dict[Split, int]:
        return {split: len(names) for split, names in class_list(self.split).items()}

    def editions(self) -> tuple[Edition, ...]:
        tar, png, zipped = "cifar-100-python.tar.gz", "cifar100.zip", "fc100.zip"
        found = (
            Edition("unpacked", tuple(File(f"cifar-100-python/{name}") for name in INSIDE)),
            Edition("python", (File(tar, at(self.mirrors, tar), self.archive_md5),)),
            Edition("png", (File(png, at(self.zip_mirrors, png)),)),
        )
        if self.split == "cifar_fs":
            return found
        pickles = Edition("pickles", tuple(File(name) for name in PICKLES.values()))
        return (*found, pickles, Edition("zip", (File(zipped, at(self.zip_mirrors, zipped)),)))

    def load(self, say: Callable[[str], None]) -> Pool:
        inner = (self.train_md5, self.test_md5, self.meta_md5)
        # with the split: only one of the two can be packed from files that do not name their classes
        key = digest(RECIPE, self.split, *inner, self.images_per_class, self.size, self.resize)
        pack = packed(f"{self.split}-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(self._lists(pack.names), f"data.split={self.split}"), self.duplicates, say)

    def _lists(self, names: Sequence[str]) -> Mapping[Split, Sequence[str]]:
        if not _numbered(names[0]):
            return class_list(self.split)
        return {split: [name for name in names if name.startswith(f"{split}/")] for split in SPLITS}

    def _contents(self, say: Callable[[str], None]) -> Contents:
        edition = obtain(self, say)
        where = home(self) / edition.files[0].path
        readers = {"unpacked": self._unpacked, "python": self._archive, "png": self._pngs, "zip": self._zip}
        images = readers.get(edition.name, self._pickles)(where)
        for name, of_class in images.items():
            if len(of_class) != self.images_per_class:
                raise DataError(f"{where}: class {name} has {len(of_class)} images, not {self.images_per_class}")
        names = tuple(sorted(images))
        groups = tuple("" if _numbered(name) else name.partition("/")[0] for name in names)
        counts = tuple(len(images[name]) for name in names)
        return Contents(names, counts, (3, self.size, self.size), self._rows(images, names), groups)

    def _rows(self, images: Mapping[str, Images], names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        """In order of their bytes within a class, which is the same from whatever edition."""
        look = Look(self.size, 3, self.resize)
        for name in names:
            for image in sorted(images[name], key=lambda image: image.tobytes()):
                yield _resized(image, look)

    def _unpacked(self, where: Path) -> dict[str, Images]:
        """From the folder cifar-100-python."""
        return self._python({name: (where.parent / name).read_bytes() for name in INSIDE}, where.parent)

    def _archive(self, where: Path) -> dict[str, Images]:
        """From cifar-100-python.tar.gz."""
        parts: dict[str, bytes] = {}
        for member in members(where):
            name = member.name.rpartition("/")[2]
            if name in INSIDE:
                parts[name] = member.read()
        return self._python(parts, where)

    def _python(self, parts: Mapping[str, bytes], where: Path) -> dict[str, Images]:
        for name, expected in zip(INSIDE, (self.train_md5, self.test_md5, self.meta_md5), strict=True):
            found = hashlib.md5(parts.get(name, b""), usedforsecurity=False).hexdigest()
            if found != expected:
                told = f"{name} in it has md5 {found}, not {expected}" if name in parts else f"there is no {name} in it"
                raise DataError(f"{where}: {told}; put the published one there")
        about = _record(parts["meta"], ("fine_label_names", "coarse_label_names"), f"{where}: meta")
        fine, coarse = (list(map(_text, about[key])) for key in ("fine_label_names", "coarse_label_names"))
        blocks: list[tuple[Images, list[str]]] = []
        for name in ("train", "test"):
            data = _record(parts[name], ("data", "fine_labels", "coarse_labels"), f"{where}: {name}")
            planes = np.asarray(data["data"]).reshape(-1, 3, SIDE, SIDE)
            labels = zip(data["fine_labels"], data["coarse_labels"], strict=True)
            blocks.append((planes.transpose(0, 2, 3, 1), [f"{coarse[of]}/{fine[label]}" for label, of in labels]))
        images = np.concatenate([block for block, _ in blocks])
        return self._whole(_by_class(images, [name for _, names in blocks for name in names], where), where)

    def _pngs(self, where: Path) -> dict[str, Images]:
        """From cifar100.zip: cifar100/data/CLASS/*.png, and the classes of CIFAR-FS in cifar100/splits/bertinetto."""
        whole = {name.partition("/")[2]: name for names in class_list("cifar_fs").values() for name in names}
        look = Look(SIDE, 3, self.resize)
        images: dict[str, list[Images]] = {}
        with zip_archive.opened(where) as file:
            for member in zip_archive.members(file):
                found = PNG.fullmatch(member)
                if found:
                    name = whole.get(found[1], found[1])
                    picture = look.of(zip_archive.content(file, member), f"{where}: {member}")
                    images.setdefault(name, []).append(picture.transpose(1, 2, 0))
            self._same_lists(file, where)
        return self._whole({name: np.stack(found) for name, found in images.items()}, where)

    def _same_lists(self, file: zipfile.ZipFile, where: Path) -> None:
        for member in zip_archive.members(file):
            found = TXT.fullmatch(member)
            if found:
                listed = {name.partition("/")[2] for name in class_list("cifar_fs")[cast("Split", found[1])]}
                other = sorted(listed ^ set(zip_archive.content(file, member).decode("utf-8", "replace").split()))
                if other:
                    told = f"{member} and the published {found[1]} split differ in {', '.join(other[:3])}"
                    raise DataError(f"{where}: {told}; put the published archive there")

    def _whole(self, images: dict[str, Images], where: Path) -> dict[str, Images]:
        other = set(images) ^ {name for names in class_list("cifar_fs").values() for name in names}
        if other:
            name = min(other)
            told = f"has a class {name} that is not of CIFAR-100" if name in images else f"has no class {name}"
            raise DataError(f"{where} {told}; put the published one there")
        return images

    def _zip(self, where: Path) -> dict[str, Images]:
        """From fc100.zip, which holds the three pickles."""
        with zip_archive.opened(where) as file:
            place = {name.rpartition("/")[2]: name for name in zip_archive.members(file)}
            missing = [name for name in PICKLES.values() if name not in place]
            if missing:
                raise DataError(f"{where} holds no {missing[0]}; put the published archive there")
            return self._fc100(
                {split: zip_archive.content(file, place[name]) for split, name in PICKLES.items()}, where
            )

    def _pickles(self, where: Path) -> dict[str, Images]:
        """From FC100_train.pickle, FC100_val.pickle, FC100_test.pickle."""
        return self._fc100({split: (where.parent / name).read_bytes() for split, name in PICKLES.items()}, where.parent)

    def _fc100(self, parts: Mapping[Split, bytes], where: Path) -> dict[str, Images]:
        """Named where the labels of each split are those that CIFAR-100 gives its classes, else by number."""
        lists = class_list("fc100")
        fine = sorted((name for names in lists.values() for name in names), key=lambda name: name.partition("/")[2])
        data = {
            split: _record(content, ("data", "labels"), f"{where}: {PICKLES[split]}")
            for split, content in parts.items()
        }
        labels = {split: _numbers(record["labels"], f"{where}: {PICKLES[split]}") for split, record in data.items()}
        named = all({fine[n] for n in set(labels[split]) if 0 <= n < len(fine)} == set(lists[split]) for split in lists)
        images: dict[str, Images] = {}
        for split, record in data.items():
            distinct = sorted(set(labels[split]))
            if len(distinct) != len(lists[split]):
                raise DataError(f"{where}: {PICKLES[split]} has {len(distinct)} classes, not {len(lists[split])}")
            name = {n: fine[n] if named else f"{split}/{place:02d}" for place, n in enumerate(distinct)}
            images |= _by_class(np.asarray(record["data"]), [name[n] for n in labels[split]], where)
        return images


def _numbered(name: str) -> bool:
    return name.partition("/")[0] in SPLITS


def _numbers(labels: Any, where: str) -> list[int]:
    try:
        return [int(label) for label in labels]
    except (TypeError, ValueError) as problem:
        raise DataError(f"{where}: labels are no whole numbers; put the published file there") from problem


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _record(content: bytes, keys: Sequence[str], where: str) -> dict[str, Any]:
    """A pickled dictionary, its keys as text whichever Python wrote it."""
    found = read(io.BytesIO(content), where, "bytes")
    record = {_text(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    missing = [key for key in keys if key not in record]
    if missing:
        raise DataError(f"{where} has no {missing[0]}; put the published file there")
    return record


def _by_class(images: NDArray[Any], names: Sequence[str], where: Path) -> dict[str, Images]:
    if images.dtype != np.uint8 or images.shape != (len(names), SIDE, SIDE, 3):
        told = f"{images.dtype} {images.shape} for {len(names)} labels, not uint8 {(len(names), SIDE, SIDE, 3)}"
        raise DataError(f"{where}: images are {told}; put the published one there")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: images[of_class] for name, of_class in rows.items()}


def _resized(image: Images, look: Look) -> NDArray[np.uint8]:
    if look.size == SIDE:
        return image.transpose(2, 0, 1)
    from PIL import Image  # late: a warm start reads no picture

    return look.shaped(Image.fromarray(image))
