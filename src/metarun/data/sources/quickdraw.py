"""Quick, Draw!: 50 million quick drawings of 345 things (Jongejan and others 2016; Ha, Eck 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch.editions import Edition, Facts, File, at, home, obtain
from metarun.data.read.images import Filter, Look
from metarun.data.splits.class_list import class_list
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Duplicates, digest, packed
from metarun.data.store.pool import DataError, Pool

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
SIDE = 28  # pixels of a published drawing
BLOCK = 4096  # drawings read at a time


@dataclass(frozen=True)
class Quickdraw:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors")
    folder_name: ClassVar[str] = "quickdraw"
    facts: ClassVar[Facts] = Facts(
        "CC BY 4.0", 50_426_266, 39_500, "https://github.com/googlecreativelab/quickdraw-dataset"
    )

    root: str | None
    mirrors: tuple[str, ...]
    per_class: int | None
    size: int  # pixels
    resize: Filter
    duplicates: Duplicates
    mean: float
    std: float
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"per_class={self.per_class}: take 1 drawing or more of each class, or null for all")

    def counts(self) -> dict[Split, int]:
        return {split: len(names) for split, names in class_list("quickdraw").items()}

    def editions(self) -> tuple[Edition, ...]:
        files = (File(f"{name}.npy", at(self.mirrors, quote(f"{name}.npy"))) for name in _names())
        return (Edition("one file for each class", tuple(files)),)

    def load(self, say: Callable[[str], None]) -> Pool:
        key = digest(RECIPE, self.per_class, self.size, self.resize)
        pack = packed(f"quickdraw-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(class_list("quickdraw"), "the split of Meta-Dataset"), self.duplicates, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        obtain(self, say)
        files = [home(self) / f"{name}.npy" for name in _names()]
        counts = tuple(self._taken(file) for file in files)
        return Contents(
            _names(), counts, (1, self.size, self.size), self._rows(files, counts), compared=self.per_class is not None
        )

    def _taken(self, file: Path) -> int:
        there = len(_drawings(file))
        wanted = there if self.per_class is None else self.per_class
        if not 0 < wanted <= there:
            told = f"{file} has {there} drawings, not {max(wanted, 1)}"
            raise DataError(f"{told}; set data.per_class lower, or put the published file there")
        return wanted

    def _rows(self, files: Sequence[Path], counts: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        for file, count in zip(files, counts, strict=True):
            drawings = _drawings(file)
            for start in range(0, count, BLOCK):
                yield self._sized(drawings[start : min(start + BLOCK, count)].reshape(-1, SIDE, SIDE))

    def _sized(self, drawings_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.size == SIDE:
            return drawings_NHW[:, None]
        from PIL import Image  # late: a warm start reads no picture

        look = Look(self.size, 1, self.resize)
        return np.stack([look.shaped(Image.fromarray(np.array(drawing))) for drawing in drawings_NHW])


def _names() -> tuple[str, ...]:
    return tuple(sorted(name for names in class_list("quickdraw").values() for name in names))


def _drawings(file: Path) -> NDArray[np.uint8]:
    """uint8 [drawings, 784], ink 255 on 0; mapped, and anything that could be executed is refused."""
    try:
        found: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"{file} cannot be read as drawings ({problem}); put the published file there") from problem
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape[1:] != (SIDE * SIDE,):
        raise DataError(f"{file} is not of 8-bit drawings of {SIDE} x {SIDE} pixels; put the published file there")
    return found
