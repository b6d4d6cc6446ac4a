"""Published data sets: the files they consist of, the folder for these, and how the files get there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from metarun.data.fetch.download import fetch
from metarun.data.store.pool import DataError, Say, cache_root


class PublishedFile(NamedTuple):
    """A published file, by its path below the data set's folder; a path that ends in / is a folder of files."""

    path: str
    urls: tuple[str, ...] = ()  # tried in turn; none: the file may not be passed on, or nobody does
    md5: str | None = None  # of the published bytes; None: never published


class Edition(NamedTuple):
    """One of the forms in which a data set is in circulation; all of its files are needed."""

    name: str
    files: tuple[PublishedFile, ...]


class Facts(NamedTuple):
    """What `metarun data list` shows of a published data set."""

    licence: str
    images: int
    megabytes: int  # of the download
    page: str  # where a person gets it


class Published(Protocol):
    """The part of a data source that is needed to find and to fetch its files."""

    facts: ClassVar[Facts]
    folder_name: ClassVar[str]  # of its folder below data.root

    @property
    def root(self) -> str | None: ...

    def editions(self) -> tuple[Edition, ...]: ...


def data_folder(source: Published) -> Path:
    """The data set's folder: below data.root, else below METARUN_DATA, else below data/ in the cache folder."""
    root = source.root or os.environ.get("METARUN_DATA")
    return (Path(root).expanduser() if root else cache_root() / "data") / source.folder_name


def edition_on_disk(source: Published) -> Edition | None:
    """The first edition all of whose files are there."""
    folder = data_folder(source)
    complete = (
        edition for edition in source.editions() if all((folder / file.path).exists() for file in edition.files)
    )
    return next(complete, None)


def fetch_edition(source: Published, say: Say) -> Edition:
    """The edition on the disk, else the first that can be downloaded; DataError says which files to put where."""
    found = edition_on_disk(source)
    if found:
        return found
    folder, failures = data_folder(source), []
    for edition in source.editions():
        if not all(file.urls or (folder / file.path).exists() for file in edition.files):
            continue
        try:
            for file in edition.files:
                fetch(folder / file.path, file.urls, file.md5, say)
            return edition
        except DataError as problem:
            failures.append(str(problem))
    raise DataError("; ".join([*failures, manual_steps(source)]))


def manual_steps(source: Published) -> str:
    """What a person can do: which files to get, from which page, into which folder."""
    ways = " or ".join(", ".join(file.path for file in edition.files) for edition in source.editions())
    return f"get {ways} from {source.facts.page} and put it into {data_folder(source)}"


def archive_or_folder(mirrors: Sequence[str], archive: str, md5: str | None, folder: str) -> tuple[Edition, ...]:
    """Two editions: one archive, or the folder that was unpacked from it."""
    packages = (PublishedFile(archive, mirror_urls(mirrors, archive), md5),)
    return Edition("archive", packages), Edition("unpacked", (PublishedFile(f"{folder}/"),))


def mirror_urls(mirrors: Sequence[str], name: str) -> tuple[str, ...]:
    """A file's address on every mirror; a mirror is the address of a folder."""
    return tuple(f"{mirror.rstrip('/')}/{name}" for mirror in mirrors)
