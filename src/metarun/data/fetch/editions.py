"""Published data sets: in which files they are in circulation, where those lie on this machine, how they get there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from metarun.data.fetch.download import fetch
from metarun.data.read.images import Filter, Fit
from metarun.data.splits.class_list import class_list
from metarun.data.store.pack import Duplicates
from metarun.data.store.pool import DataError, Pool, Say, cache_root

if TYPE_CHECKING:
    from metarun.types import Kind, Split


class File(NamedTuple):
    """A published file, by its path below the data set's folder; one that ends in / is a folder of files."""

    path: str
    mirrors: tuple[str, ...] = ()  # whole addresses, tried in turn; none: nobody may pass it on, or nobody does
    md5: str | None = None  # of the published bytes; None: never published


class Edition(NamedTuple):
    """One of the forms in which a data set is in circulation; all of its files are needed."""

    name: str
    files: tuple[File, ...]


class Facts(NamedTuple):
    licence: str
    images: int
    megabytes: int  # of the download
    page: str  # where a person gets it


class Published(Protocol):
    """What a source answers beside load(), to be listed, fetched and checked."""

    kind: ClassVar[Kind]
    facts: ClassVar[Facts]
    folder_name: ClassVar[str]  # of its folder below data.root

    @property
    def root(self) -> str | None: ...

    def counts(self) -> dict[Split, int]: ...

    def editions(self) -> tuple[Edition, ...]: ...

    def load(self, say: Callable[[str], None]) -> Pool: ...


@dataclass(frozen=True)
class ColourPictures:
    """What published sets of colour pictures have in common."""

    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors")
    folder_name: ClassVar[str]

    root: str | None  # folder that holds the data set's; None: METARUN_DATA, else data/ in the cache folder
    mirrors: tuple[str, ...]  # folders on the web
    size: int  # pixels
    resize: Filter
    fit: Fit
    duplicates: Duplicates
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: needs 1 pixel or more")

    def lists(self) -> dict[Split, list[str]]:
        return class_list(self.folder_name)

    def counts(self) -> dict[Split, int]:
        return {split: len(names) for split, names in self.lists().items()}


def home(source: Published) -> Path:
    """The data set's folder: below data.root, else METARUN_DATA, else data/ in the cache folder."""
    root = source.root or os.environ.get("METARUN_DATA")
    return (Path(root).expanduser() if root else cache_root() / "data") / source.folder_name


def present(source: Published) -> Edition | None:
    """The first edition whose files are all there."""
    folder = home(source)
    whole = (edition for edition in source.editions() if all((folder / file.path).exists() for file in edition.files))
    return next(whole, None)


def obtain(source: Published, say: Say) -> Edition:
    """The edition that is there, else the first that can be downloaded; DataError says what to put where."""
    found = present(source)
    if found:
        return found
    failures = []
    for edition in source.editions():
        if not all(file.mirrors or (home(source) / file.path).exists() for file in edition.files):
            continue
        try:
            for file in edition.files:
                fetch(home(source) / file.path, file.mirrors, file.md5, say)
            return edition
        except DataError as problem:
            failures.append(str(problem))
    raise DataError("; ".join([*failures, by_hand(source)]))


def by_hand(source: Published) -> str:
    """What a person has to do: which files, from which page, into which folder."""
    ways = " or ".join(", ".join(file.path for file in edition.files) for edition in source.editions())
    return f"get {ways} from {source.facts.page} and put it into {home(source)}"


def tarred(mirrors: Sequence[str], archive: str, md5: str | None, folder: str) -> tuple[Edition, ...]:
    """One archive, or the folder that comes out of it."""
    packages = (File(archive, at(mirrors, archive), md5),)
    return Edition("archive", packages), Edition("unpacked", (File(f"{folder}/"),))


def at(mirrors: Sequence[str], name: str) -> tuple[str, ...]:
    """A file's address on every mirror, each the address of a folder."""
    return tuple(f"{mirror.rstrip('/')}/{name}" for mirror in mirrors)
