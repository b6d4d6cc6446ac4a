"""tiered-ImageNet (Ren 2018): 608 classes of ImageNet, 779,165 images. Each of 34 superclasses lies in one split."""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read.images import PictureDecoder, map_in_order
from metarun.data.read.safe_pickle import as_record, as_text, as_whole_numbers, load_pickle
from metarun.data.sources.packed_source import ColourPictures
from metarun.data.splits import SPLITS
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Pack
from metarun.data.store.pool import DataError, Say, Splits

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# bytes of opcode and length before the data, for the pickle opcodes that hold bytes as they are
BYTES_BEFORE_DATA = {
    "SHORT_BINSTRING": 2,
    "SHORT_BINBYTES": 2,
    "BINSTRING": 5,
    "BINBYTES": 5,
    "BINBYTES8": 9,
    "BYTEARRAY8": 9,
}

SplitPaths = dict["Split", tuple[Path, Path]]  # of labels and images


class PictureSpan(NamedTuple):
    """The bytes of a picture in a file."""

    start: int
    end: int


@dataclass(frozen=True)
class SplitLabels:
    """The labels file of one split."""

    class_numbers: NDArray[np.int64]  # of each image
    names: dict[int, str]  # of each class
    groups: dict[int, str]  # the superclass of each class


@dataclass(frozen=True)
class TieredImagenet(ColourPictures):
    recipe: ClassVar[int] = 1
    facts: ClassVar[Facts] = Facts(
        "ImageNet's terms: non-commercial research and education", 779165, 12900, "https://zenodo.org/records/7978538"
    )
    folder_name: ClassVar[str] = "tiered-imagenet"

    images: tuple[int, int, int]  # of train, val, test, as the two below
    classes: tuple[int, int, int]
    superclasses: tuple[int, int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.classes) < 1:
            raise ValueError(f"classes={list(self.classes)}: use 1 or more each; published are [351, 97, 160]")

    def counts(self) -> dict[Split, int]:
        return dict(zip(SPLITS, self.classes, strict=True))

    def editions(self) -> tuple[Edition, ...]:
        names = [f"{split}_{part}.pkl" for split in SPLITS for part in ("labels", "images_png")]
        renamed = [f"tiered-imagenet-{name}" for name in names]
        return (
            Edition("archive", tuple(PublishedFile(name) for name in names)),
            Edition("renamed", tuple(PublishedFile(name, mirror_urls(self.mirrors, name)) for name in renamed)),
        )

    def split_numbers(self, pack: Pack) -> Splits:
        lists = {split: [name for name in pack.names if name.startswith(f"{split}/")] for split in SPLITS}
        return pack.numbers(lists, "tiered_imagenet")

    def contents(self, say: Say) -> Contents:
        edition, folder = fetch_edition(self, say), data_folder(self)
        paths = [folder / file.path for file in edition.files]
        files: SplitPaths = dict(zip(SPLITS, zip(paths[::2], paths[1::2], strict=True), strict=True))
        labels = {split: _read_labels(path, split) for split, (path, _) in files.items()}
        self._check(labels, {split: path for split, (path, _) in files.items()})
        order = {split: sorted(found.names, key=found.names.__getitem__) for split, found in labels.items()}
        names = tuple(labels[split].names[n] for split in SPLITS for n in order[split])
        groups = tuple(labels[split].groups[n] for split in SPLITS for n in order[split])
        counts = tuple(int((labels[split].class_numbers == n).sum()) for split in SPLITS for n in order[split])
        rows = self._rows(files, labels, order, say)
        return Contents(names, counts, (3, self.size, self.size), rows, groups)

    def _check(self, labels: dict[Split, SplitLabels], paths: dict[Split, Path]) -> None:
        """DataError unless the numbers are those published and no superclass is in two splits."""
        owner: dict[str, Split] = {}
        expected = zip(SPLITS, self.images, self.classes, self.superclasses, strict=True)
        for split, images, classes, superclasses in expected:
            found, where = labels[split], paths[split]
            groups = set(found.groups.values())
            for count, wanted, what in (
                (len(found.class_numbers), images, "images"),
                (len(found.names), classes, "classes"),
                (len(groups), superclasses, "superclasses"),
            ):
                if count != wanted:
                    raise DataError(f"{where} has {count} {what}, not {wanted}; put the published file there")
            for group in sorted(groups):
                if owner.setdefault(group, split) != split:
                    raise DataError(f"{where}: superclass {group} is in the {owner[group]} split too")

    def _rows(
        self, files: SplitPaths, labels: dict[Split, SplitLabels], order: dict[Split, list[int]], say: Say
    ) -> Iterator[NDArray[np.uint8]]:
        for split, (_, path) in files.items():
            class_I = labels[split].class_numbers
            say(f"{path.name}: looking for the {len(class_I)} pictures in it")
            spans = png_spans(path)
            if len(spans) != len(class_I):
                reason = f"{len(spans)} pictures, and its labels file has {len(class_I)}"
                raise DataError(f"{path} has {reason}; put the published files there")
            rows = (int(row) for n in order[split] for row in np.flatnonzero(class_I == n))
            yield from _decoded(path, ((row, spans[row]) for row in rows), self.decoder)


def _decoded(
    path: Path, spans: Iterator[tuple[int, PictureSpan]], decoder: PictureDecoder
) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield from map_in_order(
            spans, lambda found: decoder.decode(content[found[1].start : found[1].end], f"{path}: picture {found[0]}")
        )


def png_spans(path: Path) -> list[PictureSpan]:
    """Where each PNG image lies in a pickled list of them, in the order of the list.

    Unpickling would take the whole file into memory, up to 10 GB. Here its opcodes are read, and none is executed.
    """
    try:
        with path.open("rb") as file:
            return list(_find_pngs(file))
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as problem:
        raise DataError(f"{path} is no readable pickle ({problem}); put the published file there") from problem


def _find_pngs(file: IO[bytes]) -> Iterator[PictureSpan]:
    for opcode, arg, start in pickletools.genops(file):
        if opcode.name in BYTES_BEFORE_DATA and isinstance(arg, str | bytes | bytearray) and start is not None:
            first = start + BYTES_BEFORE_DATA[opcode.name]
            if arg[: len(PNG_SIGNATURE)] in (PNG_SIGNATURE, PNG_SIGNATURE.decode("latin1")):
                yield PictureSpan(first, first + len(arg))


def _read_labels(path: Path, split: Split) -> SplitLabels:
    keys = ("label_specific", "label_general")
    record = as_record(load_pickle(path, "bytes"), keys, str(path))
    class_I, group_I = (np.array(as_whole_numbers(record[key], f"{path}: {key}"), dtype=np.int64) for key in keys)
    if len(class_I) != len(group_I):
        raise DataError(f"{path} has {len(class_I)} classes of images, and {len(group_I)} superclasses of images")
    group_of: dict[int, int] = {}
    for n, group in zip(class_I.tolist(), group_I.tolist(), strict=True):
        if group_of.setdefault(n, group) != group:
            raise DataError(f"{path}: class {n} has images of the superclasses {group_of[n]} and {group}")
    class_words = _words_of_labels(record.get("label_specific_str"), class_I)
    names = {n: f"{split}/{class_words.get(n, f'{n:03d}')}" for n in group_of}
    if len(set(names.values())) != len(names):
        raise DataError(f"{path}: two classes are called {max(names.values(), key=list(names.values()).count)}")
    group_words = _words_of_labels(record.get("label_general_str"), group_I)
    groups = {n: group_words.get(group, f"{split}/{group:02d}") for n, group in group_of.items()}
    return SplitLabels(class_I, names, groups)


def _words_of_labels(words: object, label_I: NDArray[np.int64]) -> dict[int, str]:
    """The word of each label, from a list of one word per label or of one per image."""
    listed = list(words) if isinstance(words, Iterable) else []
    if listed and len(listed) == len(label_I) and len(listed) > label_I.max() + 1:
        return {int(n): as_text(word) for n, word in zip(label_I, listed, strict=True)}
    return {n: as_text(word) for n, word in enumerate(listed)}
