"""Data sources whose items are packed once into a file of the cache folder: how they load, and what names the file.

The name of a packed file is derived from all fields of the source. A field that does not decide which bytes are packed
has to be named in `unpacked`, with the reason. So a forgotten field can only cause a data set to be packed again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from metarun.data.fetch.editions import Edition, Facts
from metarun.data.read.images import Filter, Fit, PictureDecoder
from metarun.data.sources.source import Rotations, Source
from metarun.data.splits.class_list import class_list
from metarun.data.splits.split_file import SplitShares
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Duplicates, Pack, digest, packed
from metarun.data.store.pool import DataError, Pool, Say, Splits

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split


class Packing(NamedTuple):
    """What load() needs from a source."""

    contents: Callable[[], Contents]  # called only if there is no packed file yet
    splits: Callable[[Pack], Splits]
    duplicates: Duplicates
    files: object = ()  # state of the user's own files: part of the key beside the fields


@dataclass(frozen=True)
class PackedSource(Source, ABC):
    """A data set that is packed once into a file, which later runs map into memory."""

    kind: ClassVar[Kind] = "classes"
    recipe: ClassVar[int]  # version of how items are made; part of the key: raise it with every change of the items
    unpacked: ClassVar[Mapping[str, str]] = {}  # fields that do not decide which bytes are packed, with the reason

    @abstractmethod
    def packing(self, say: Say) -> Packing: ...

    @property
    def pack_name(self) -> str:
        """The packed file's name without the key."""
        return type(self).__module__.rpartition(".")[2]

    def cache_key(self, files: object = ()) -> str:
        """Twelve hex digits from the recipe, all fields but the unpacked ones, and the state of the user's files."""
        packed_fields = sorted((name, value) for name, value in vars(self).items() if name not in self.unpacked)
        return digest(self.recipe, packed_fields, files)

    def load(self, say: Say) -> Pool:
        packing = self.packing(say)
        pack = packed(f"{self.pack_name}-{self.cache_key(packing.files)}", packing.contents, say)
        return pack.pool(packing.splits(pack), packing.duplicates, say)


@dataclass(frozen=True)
class PictureSource(PackedSource, ABC):
    """A packed data set of pictures, stored as they are and normalised when a task is made of them."""

    unpacked: ClassVar[Mapping[str, str]] = {
        "mean": "pictures are packed as uint8 and normalised when a task is made of them",
        "std": "pictures are packed as uint8 and normalised when a task is made of them",
        "rotations": "pictures are turned when a task is made of them",
    }

    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    rotations: Rotations


@dataclass(frozen=True)
class PublishedPictures(PictureSource, ABC):
    """A published data set: its files are found below data.root, or downloaded to there."""

    places: ClassVar[tuple[str, ...]] = ("root", "mirrors")
    facts: ClassVar[Facts]
    folder_name: ClassVar[str]  # of its folder below data.root
    unpacked: ClassVar[Mapping[str, str]] = {
        **PictureSource.unpacked,
        "root": "the same published files wherever they lie",
        "mirrors": "the same published files whoever sends them",
        "duplicates": "is looked at after packing, when the splits are made",
    }

    root: str | None  # the folder above folder_name; None: METARUN_DATA, else data/ in the cache folder
    mirrors: tuple[str, ...]  # folders on the web that hold the files
    size: int  # pixels
    resize: Filter
    duplicates: Duplicates

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")

    @property
    def list_name(self) -> str:
        """The file in data/splits with the classes of each split."""
        return self.folder_name

    def counts(self) -> dict[Split, int]:
        return {split: len(names) for split, names in class_list(self.list_name).items()}

    @abstractmethod
    def editions(self) -> tuple[Edition, ...]:
        """The forms in which the data set is in circulation, the preferred one first."""

    @abstractmethod
    def contents(self, say: Say) -> Contents:
        """All classes and pictures, from the edition that is on the disk or can be downloaded."""

    def split_numbers(self, pack: Pack) -> Splits:
        return pack.numbers(class_list(self.list_name), f"data/splits/{self.list_name}.json")

    def packing(self, say: Say) -> Packing:
        return Packing(partial(self.contents, say), self.split_numbers, self.duplicates)


@dataclass(frozen=True)
class ColourPictures(PublishedPictures, ABC):
    """A published data set of colour pictures of many sizes."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit

    @property
    def decoder(self) -> PictureDecoder:
        return PictureDecoder(self.size, 3, self.resize, self.fit)


@dataclass(frozen=True)
class OwnFiles(PackedSource, ABC):
    """The user's own files: packed again when they change, and split by a seed or by a file of class names."""

    places: ClassVar[tuple[str, ...]] = ("path",)
    unpacked: ClassVar[Mapping[str, str]] = {
        "path": "Packing.files has the real path and the state of each file",
        "split": "splits are made after packing",
        "split_seed": "splits are made after packing",
        "val_share": "splits are made after packing",
        "test_share": "splits are made after packing",
        "duplicates": "is looked at after packing, when the splits are made",
    }

    path: str | None
    split: str | None
    split_seed: int
    val_share: float
    test_share: float
    duplicates: Duplicates

    def __post_init__(self) -> None:
        self.shares.check()

    @property
    def shares(self) -> SplitShares:
        return SplitShares(self.split_seed, self.val_share, self.test_share)

    def existing_path(self, what: str) -> Path:
        """data.path as an absolute path; DataError unless it is set and exists. `what` says what should lie there."""
        if self.path is None:
            raise DataError(f"data.path=null: say where your {what}, by data.path=...")
        found = Path(self.path).expanduser().absolute()
        if not found.exists():
            raise DataError(f"data.path={self.path}: there is no {found}; say where your {what}")
        return found
