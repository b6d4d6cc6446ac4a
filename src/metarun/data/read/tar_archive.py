"""Pictures and texts from a published tar archive, or from the folder that was unpacked from it.

A compressed tar can be read only from its beginning. Pictures that are wanted in another order are decoded in one pass
into a temporary file in the cache folder, and read back from there; nothing is unpacked.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.read.images import PictureDecoder, map_in_order
from metarun.data.store.contents import PROGRESS_EVERY_S, Contents
from metarun.data.store.pool import DataError, Say, cache_root

if TYPE_CHECKING:
    from PIL import Image

TAR_BYTES = 1 << 20  # read at a time
ROWS_READ_BACK = 256  # pictures read back from the temporary file at a time
GZIP_MAGIC = b"\x1f\x8b"

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
WHOLE_PICTURE = (0, 0, 0, 0)
Decode = Callable[[str, bytes], NDArray[np.uint8]]  # of a file's name and bytes


class TarMember(NamedTuple):
    """A file of an archive."""

    name: str  # as a path: "CUB_200_2011/images.txt"
    read: Callable[[], bytes]  # works only until the next member is asked for


@dataclass(frozen=True)
class CropDecoder(PictureDecoder):
    """Decodes a part of a picture. A right or bottom edge that is 0 or negative counts from the picture's own edge."""

    box: Box = WHOLE_PICTURE

    def convert(self, picture: Image.Image) -> NDArray[np.uint8]:
        (left, top, right, bottom), (width, height) = self.box, picture.size
        right, bottom = right if right > 0 else width + right, bottom if bottom > 0 else height + bottom
        inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ValueError(f"{self.box} is no part of {width} x {height} pixels")
        return super().convert(picture.crop(inside))


def tar_members(path: Path) -> Iterator[TarMember]:
    """The files of a tar archive, compressed by gzip or not, in the order of the archive."""
    with _tar_errors(path), path.open("rb") as raw:
        zipped = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        with gzip.open(raw) if zipped else raw as file:
            with tarfile.open(fileobj=file, mode="r|", bufsize=TAR_BYTES) as tar:
                for info in _file_infos(tar):
                    yield TarMember(_relative_name(info.name, path), partial(_read_member, tar, info, path))
            while file.read(TAR_BYTES):  # to the end: damage after the last file shows only here
                pass


def _file_infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        if not info.isdir():
            yield info


def _read_member(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    with _tar_errors(path):
        file = tar.extractfile(info) if info.isreg() else None
        if file is None:
            raise DataError(f"{path}: {info.name} is a link or a device, not a file; put the published archive there")
        return file.read()


@contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    """Turns what a damaged archive raises into a DataError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError) as problem:
        raise DataError(f"{path} is no whole tar archive ({problem}); put the published one there") from problem


def _relative_name(name: str, where: Path) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise DataError(f"{where}: the file name {name} points outside; put the published archive there")
    return "/".join(parts)


def file_names(path: Path, wanted: Callable[[str], bool], say: Say) -> list[str]:
    """Names of the wanted files of an archive or of an unpacked folder, sorted: "dtd/images/..."."""
    say(f"{path.name}: looking through it")
    if not path.is_dir():
        return sorted(member.name for member in tar_members(path) if wanted(member.name))
    above = len(path.parent.parts)
    found = ("/".join(Path(folder, name).parts[above:]) for folder, _, files in os.walk(path) for name in files)
    return sorted(filter(wanted, found))


def read_texts(path: Path, names: Sequence[str], say: Say) -> list[str]:
    """Small text files of an archive or of an unpacked folder, in the order of `names`."""
    say(f"{path.name}: looking for {', '.join(PurePosixPath(name).name for name in names)}")
    found: dict[str, str] = {}
    for member in _named_members(path, names):
        found[member.name] = member.read().decode("utf-8", "replace")
        if len(found) == len(names):
            break
    _check_none_missing(path, names, found)
    return [found[name] for name in names]


def _named_members(path: Path, names: Sequence[str]) -> Iterator[TarMember]:
    """The files of these names that are there: from an archive in its order, from a folder in the order of `names`."""
    wanted = set(names)
    assert len(wanted) == len(names), f"{len(names)} names, {len(wanted)} different"
    if not path.is_dir():
        yield from (member for member in tar_members(path) if member.name in wanted)
        return
    for name in names:
        file = path.parent / _relative_name(name, path)
        if file.is_file():
            yield TarMember(name, file.read_bytes)


def _check_none_missing(path: Path, names: Sequence[str], found: Iterable[str]) -> None:
    there = set(found)
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(names)} files, the first {missing[0]}; put the published data there"
        )


def files_by_class(names: Iterable[str], class_of: Callable[[str], str]) -> dict[str, list[str]]:
    """The files of each class; classes and files are sorted."""
    classes: dict[str, list[str]] = {}
    for name in sorted(names):
        classes.setdefault(class_of(name), []).append(name)
    return dict(sorted(classes.items()))


def check_published_counts(path: Path, classes: Mapping[str, Sequence[str]], num_classes: int, num_images: int) -> None:
    """DataError unless there are as many classes and images as published."""
    found = sum(map(len, classes.values()))
    if (len(classes), found) != (num_classes, num_images):
        raise DataError(
            f"{path} has {found} images of {len(classes)} classes, not {num_images} of {num_classes}; "
            f"put the published data there"
        )


def picture_contents(path: Path, classes: Mapping[str, Sequence[str]], size: int, decode: Decode, say: Say) -> Contents:
    """Colour pictures of an archive or of an unpacked folder, class after class."""
    names = [name for files in classes.values() for name in files]
    counts, shape = tuple(len(files) for files in classes.values()), (3, size, size)
    return Contents(tuple(classes), counts, shape, decoded_in_order(path, names, shape, decode, say))


def decoded_in_order(
    path: Path, names: Sequence[str], shape: tuple[int, ...], decode: Decode, say: Say
) -> Iterator[NDArray[np.uint8]]:
    """decode(name, bytes) of the named files, in blocks and in the order of `names`, whatever the archive's order."""
    row = {name: number for number, name in enumerate(names)}
    num_bytes = int(np.prod(shape))
    with _temporary_file(len(names) * num_bytes) as file:
        for name, item in _decoded_as_they_come(path, names, decode, say):
            assert item.shape == shape, f"{item.shape}, not {shape}"
            file.seek(row[name] * num_bytes)
            file.write(item.tobytes())
        file.seek(0)
        for start in range(0, len(names), ROWS_READ_BACK):
            block = file.read(num_bytes * min(ROWS_READ_BACK, len(names) - start))
            yield np.frombuffer(block, np.uint8).reshape(-1, *shape)


def _decoded_as_they_come(
    path: Path, names: Sequence[str], decode: Decode, say: Say
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    order: deque[str] = deque()  # map_in_order returns results in the order of its jobs
    seen: set[str] = set()

    def jobs() -> Iterator[tuple[str, bytes]]:
        for member in _named_members(path, names):
            if member.name in seen:
                raise DataError(f"{path} holds {member.name} twice; put the published archive there")
            seen.add(member.name)
            order.append(member.name)
            yield member.name, member.read()

    due = time.monotonic() + PROGRESS_EVERY_S
    for done, item in enumerate(map_in_order(jobs(), lambda job: decode(*job))):
        yield order.popleft(), item
        if time.monotonic() > due:
            say(f"{path.name}: {done + 1} of {len(names)} pictures read")
            due = time.monotonic() + PROGRESS_EVERY_S
    _check_none_missing(path, names, seen)


@contextmanager
def _temporary_file(size: int) -> Iterator[IO[bytes]]:
    """A file without a name, which disappears with the process."""
    cache = cache_root()
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    folder = cache if os.access(cache, os.W_OK) else None  # None: the system's; a cache folder is not needed
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as problem:
        where = f"{folder or tempfile.gettempdir()} has no room for {size / 1e6:.0f} MB of temporary data ({problem})"
        raise DataError(f"cache: {where}; set METARUN_CACHE to another folder") from problem
