"""Quick, Draw!: 50 million quick drawings of 345 things (Jongejan and others 2016; Ha, Eck 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read.images import PictureDecoder
from metarun.data.sources.packed_source import PublishedPictures
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pool import DataError, Say

DRAWING_SIDE = 28  # pixels of a published drawing
DRAWINGS_AT_ONCE = 4096  # read at a time


@dataclass(frozen=True)
class Quickdraw(PublishedPictures):
    recipe: ClassVar[int] = 1
    folder_name: ClassVar[str] = "quickdraw"
    facts: ClassVar[Facts] = Facts(
        "CC BY 4.0", 50_426_266, 39_500, "https://github.com/googlecreativelab/quickdraw-dataset"
    )

    mean: float
    std: float
    per_class: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"per_class={self.per_class}: take 1 drawing or more of each class, or null for all")

    def editions(self) -> tuple[Edition, ...]:
        files = (
            PublishedFile(f"{name}.npy", mirror_urls(self.mirrors, quote(f"{name}.npy"))) for name in _class_names()
        )
        return (Edition("one file for each class", tuple(files)),)

    def contents(self, say: Say) -> Contents:
        fetch_edition(self, say)
        files = [data_folder(self) / f"{name}.npy" for name in _class_names()]
        counts = tuple(self._num_drawings(file) for file in files)
        shape, rows = (1, self.size, self.size), self._rows(files, counts)
        return Contents(_class_names(), counts, shape, rows, compared=self.per_class is not None)

    def _num_drawings(self, file: Path) -> int:
        there = len(_drawings(file))
        wanted = there if self.per_class is None else self.per_class
        if not 0 < wanted <= there:
            raise DataError(
                f"{file} has {there} drawings, not {max(wanted, 1)}; set data.per_class lower, "
                "or put the published file there"
            )
        return wanted

    def _rows(self, files: Sequence[Path], counts: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        for file, count in zip(files, counts, strict=True):
            drawings = _drawings(file)
            for start in range(0, count, DRAWINGS_AT_ONCE):
                block = drawings[start : min(start + DRAWINGS_AT_ONCE, count)]
                yield self._resized(block.reshape(-1, DRAWING_SIDE, DRAWING_SIDE))

    def _resized(self, drawings_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.size == DRAWING_SIDE:
            return drawings_NHW[:, None]
        decoder = PictureDecoder(self.size, 1, self.resize)
        return np.stack([decoder.convert_array(np.array(drawing)) for drawing in drawings_NHW])


def _class_names() -> tuple[str, ...]:
    return tuple(sorted(name for names in class_list("quickdraw").values() for name in names))


def _drawings(file: Path) -> NDArray[np.uint8]:
    """uint8 [drawings, 784], ink 255 on 0, mapped into memory; a file with Python objects is refused."""
    try:
        found: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"{file} cannot be read as drawings ({problem}); put the published file there") from problem
    side = DRAWING_SIDE
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape[1:] != (side * side,):
        raise DataError(f"{file} is not of 8-bit drawings of {side} x {side} pixels; put the published file there")
    return found
