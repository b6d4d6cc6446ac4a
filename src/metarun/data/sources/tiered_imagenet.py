"""tiered-ImageNet (Ren 2018): 608 classes of ImageNet whose superclasses lie in one split each, 779,165 images."""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import ColourPictures, Edition, Facts, File, at, home, obtain
from metarun.data.read.images import Look, in_order
from metarun.data.read.safe_pickle import load
from metarun.data.splits import SPLITS
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import DataError, Pool, Say

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
PNG = b"\x89PNG\r\n\x1a\n"
# the length of opcode and count before the bytes themselves, of those opcodes that hold them as they are
BEFORE_BYTES = {
    "SHORT_BINSTRING": 2,
    "SHORT_BINBYTES": 2,
    "BINSTRING": 5,
    "BINBYTES": 5,
    "BINBYTES8": 9,
    "BYTEARRAY8": 9,
}


Files = dict["Split", tuple[Path, Path]]  # labels, images


class Place(NamedTuple):
    """Where a picture lies in a file."""

    start: int
    end: int


@dataclass(frozen=True)
class Labels:
    """What a labels file says."""

    of: NDArray[np.int64]  # the class of each image
    names: dict[int, str]  # of each class
    groups: dict[int, str]


@dataclass(frozen=True)
class TieredImagenet(ColourPictures):
    facts: ClassVar[Facts] = Facts(
        "ImageNet's terms: non-commercial research and education", 779165, 12900, "https://zenodo.org/records/7978538"
    )
    folder_name: ClassVar[str] = "tiered-imagenet"

    images: tuple[int, int, int]  # of train, val, test, as all three below
    classes: tuple[int, int, int]
    superclasses: tuple[int, int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.classes) < 1:
            raise ValueError(f"classes={list(self.classes)}: each split needs 1 or more; published are [351, 97, 160]")

    def counts(self) -> dict[Split, int]:
        return dict(zip(SPLITS, self.classes, strict=True))

    def editions(self) -> tuple[Edition, ...]:
        names = [f"{split}_{part}.pkl" for split in SPLITS for part in ("labels", "images_png")]
        renamed = [f"tiered-imagenet-{name}" for name in names]
        return (
            Edition("archive", tuple(File(name) for name in names)),
            Edition("renamed", tuple(File(name, at(self.mirrors, name)) for name in renamed)),
        )

    def load(self, say: Callable[[str], None]) -> Pool:
        key = digest(RECIPE, self.images, self.classes, self.superclasses, self.size, self.resize, self.fit)
        pack = packed(f"tiered_imagenet-{key}", lambda: self._contents(say), say)
        lists = {split: [name for name in pack.names if name.startswith(f"{split}/")] for split in SPLITS}
        return pack.pool(pack.numbers(lists, "tiered_imagenet"), self.duplicates, say)

    def _contents(self, say: Say) -> Contents:
        edition, folder = obtain(self, say), home(self)
        paths = [folder / file.path for file in edition.files]
        files: Files = dict(zip(SPLITS, zip(paths[::2], paths[1::2], strict=True), strict=True))
        labels = {split: _labels(path, split) for split, (path, _) in files.items()}
        self._check(labels, {split: path for split, (path, _) in files.items()})
        order = {split: sorted(found.names, key=found.names.__getitem__) for split, found in labels.items()}
        names = tuple(labels[split].names[n] for split in SPLITS for n in order[split])
        groups = tuple(labels[split].groups[n] for split in SPLITS for n in order[split])
        counts = tuple(int((labels[split].of == n).sum()) for split in SPLITS for n in order[split])
        rows = self._rows(files, labels, order, say)
        return Contents(names, counts, (3, self.size, self.size), rows, groups)

    def _check(self, labels: dict[Split, Labels], paths: dict[Split, Path]) -> None:
        owner: dict[str, Split] = {}
        expected = zip(SPLITS, self.images, self.classes, self.superclasses, strict=True)
        for split, images, classes, superclasses in expected:
            found, where = labels[split], paths[split]
            groups = set(found.groups.values())
            for count, wanted, what in (
                (len(found.of), images, "images"),
                (len(found.names), classes, "classes"),
                (len(groups), superclasses, "superclasses"),
            ):
                if count != wanted:
                    raise DataError(f"{where} has {count} {what}, not {wanted}; put the published file there")
            for group in sorted(groups):
                if owner.setdefault(group, split) != split:
                    raise DataError(f"{where}: superclass {group} is in the {owner[group]} split too")

    def _rows(
        self, files: Files, labels: dict[Split, Labels], order: dict[Split, list[int]], say: Say
    ) -> Iterator[NDArray[np.uint8]]:
        look = Look(self.size, 3, self.resize, self.fit)
        for split, (_, path) in files.items():
            of = labels[split].of
            say(f"{path.name}: looking for the {len(of)} pictures in it")
            places = pictures_in(path)
            if len(places) != len(of):
                told = f"{len(places)} pictures, and its labels file has {len(of)}"
                raise DataError(f"{path} has {told}; put the published files there")
            rows = (int(row) for n in order[split] for row in np.flatnonzero(of == n))
            yield from _decoded(path, ((row, places[row]) for row in rows), look)


def _decoded(path: Path, places: Iterator[tuple[int, Place]], look: Look) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield from in_order(
            places, lambda found: look.of(content[found[1].start : found[1].end], f"{path}: picture {found[0]}")
        )


def pictures_in(path: Path) -> list[Place]:
    """Of a pickled list of PNG images the place of each, in order.

    Reading the list as Python does takes all of it into memory, up to 10 GB; its opcodes are read here and none obeyed.
    """
    try:
        with path.open("rb") as file:
            return list(_pictures(file))
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as problem:
        raise DataError(f"{path} is no readable pickle ({problem}); put the published file there") from problem


def _pictures(file: IO[bytes]) -> Iterator[Place]:
    for opcode, arg, start in pickletools.genops(file):
        if opcode.name in BEFORE_BYTES and isinstance(arg, str | bytes | bytearray) and start is not None:
            first = start + BEFORE_BYTES[opcode.name]
            if arg[: len(PNG)] in (PNG, PNG.decode("latin1")):
                yield Place(first, first + len(arg))


def _labels(path: Path, split: Split) -> Labels:
    found = load(path, "bytes")
    record = {_text(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    if "label_specific" not in record or "label_general" not in record:
        raise DataError(f"{path} has no label_specific and label_general; put the published file there")
    class_I, group_I = (_numbers(record[key], f"{path}: {key}") for key in ("label_specific", "label_general"))
    if len(class_I) != len(group_I):
        raise DataError(f"{path} has {len(class_I)} classes of images, and {len(group_I)} superclasses of images")
    own: dict[int, int] = {}
    for n, group in zip(class_I.tolist(), group_I.tolist(), strict=True):
        if own.setdefault(n, group) != group:
            raise DataError(f"{path}: class {n} has images of the superclasses {own[n]} and {group}")
    words = _words(record.get("label_specific_str"), class_I)
    names = {n: f"{split}/{words.get(n, f'{n:03d}')}" for n in own}
    if len(set(names.values())) != len(names):
        raise DataError(f"{path}: two classes are called {max(names.values(), key=list(names.values()).count)}")
    wider = _words(record.get("label_general_str"), group_I)
    return Labels(class_I, names, {n: wider.get(group, f"{split}/{group:02d}") for n, group in own.items()})


def _numbers(labels: Any, where: str) -> NDArray[np.int64]:
    try:
        return np.asarray(labels, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError) as problem:
        raise DataError(f"{where} are no whole numbers; put the published file there") from problem


def _words(words: Any, label_I: NDArray[np.int64]) -> dict[int, str]:
    """The word of each label, from a list of one word per label or of one per image."""
    listed = list(words) if words is not None else []
    if listed and len(listed) == len(label_I) and len(listed) > label_I.max() + 1:
        return {int(n): _text(word) for n, word in zip(label_I, listed, strict=True)}
    return {n: _text(word) for n, word in enumerate(listed)}


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)
