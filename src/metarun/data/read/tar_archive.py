"""Pictures out of a published tar archive, or of the folder that somebody unpacked it into; nothing is extracted.

A compressed tar can only be read from its beginning. What is wanted in another order than it lies in there is decoded
in one pass into a temporary file of the cache folder, and read back from that.
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
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.read.images import Look, in_order
from metarun.data.store.contents import SPEAK_EVERY_S, Contents
from metarun.data.store.pool import DataError, Say, cache_root

if TYPE_CHECKING:
    from PIL import Image

READ_AT_ONCE = 1 << 20
BLOCK = 256  # rows read back at a time
GZIP = b"\x1f\x8b"

Work = Callable[[str, bytes], NDArray[np.uint8]]


class Member(NamedTuple):
    name: str  # as a path: "CUB_200_2011/images.txt"
    read: Callable[[], bytes]  # only until the next one is asked for


@dataclass(frozen=True)
class Window(Look):
    """A look at a part of a picture; a side that is 0 or negative counts from the right or from the bottom."""

    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, top, right, bottom

    def shaped(self, picture: Image.Image) -> NDArray[np.uint8]:
        (left, top, right, bottom), (width, height) = self.box, picture.size
        right, bottom = right if right > 0 else width + right, bottom if bottom > 0 else height + bottom
        inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ValueError(f"{self.box} is no part of {width} x {height} pixels")
        return super().shaped(picture.crop(inside))


def members(path: Path) -> Iterator[Member]:
    """The files of a tar archive, compressed or not, as they lie in there."""
    with _told(path), path.open("rb") as raw:
        zipped = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]  # a file all the same
        with tarfile.open(fileobj=file, mode="r|", bufsize=READ_AT_ONCE) as tar:
            for info in _files(tar):
                yield Member(_inside(info.name, path), lambda info=info: _read(tar, info, path))  # type: ignore[misc]
        while file.read(READ_AT_ONCE):  # a damaged end shows only here
            pass


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would pile up
        if not info.isdir():
            yield info


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    with _told(path):
        file = tar.extractfile(info) if info.isreg() else None
        if file is None:
            raise DataError(f"{path}: {info.name} is a link or a device, not a file; put the published archive there")
        return file.read()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError) as problem:
        raise DataError(f"{path} is no whole tar archive ({problem}); put the published one there") from problem


def _inside(name: str, where: Path) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise DataError(f"{where}: the file name {name} points outside; put the published archive there")
    return "/".join(parts)


def names_in(path: Path, wanted: Callable[[str], bool], say: Say) -> list[str]:
    """Names of an archive's files, or of an unpacked folder's: "dtd/images/...", sorted."""
    say(f"{path.name}: looking through it")
    if not path.is_dir():
        return sorted(member.name for member in members(path) if wanted(member.name))
    above = len(path.parent.parts)
    found = ("/".join(Path(folder, name).parts[above:]) for folder, _, files in os.walk(path) for name in files)
    return sorted(filter(wanted, found))


def texts_in(path: Path, names: Sequence[str], say: Say) -> list[str]:
    """Small text files of an archive or of an unpacked folder, in the order asked for."""
    say(f"{path.name}: looking for {', '.join(PurePosixPath(name).name for name in names)}")
    found: dict[str, str] = {}
    for member in _picked(path, names):
        found[member.name] = member.read().decode("utf-8", "replace")
        if len(found) == len(names):
            break
    _all_there(path, names, found)
    return [found[name] for name in names]


def _picked(path: Path, names: Sequence[str]) -> Iterator[Member]:
    """Those of `names` that are there: of an archive in its order, of a folder in theirs."""
    wanted = set(names)
    assert len(wanted) == len(names), f"{len(names)} names, {len(wanted)} different"
    if not path.is_dir():
        yield from (member for member in members(path) if member.name in wanted)
        return
    for name in names:
        file = path.parent / _inside(name, path)
        if file.is_file():
            yield Member(name, file.read_bytes)


def _all_there(path: Path, names: Sequence[str], found: Iterable[str]) -> None:
    there = set(found)
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(names)} files, the first {missing[0]}; put the published data there"
        )


def classified(names: Iterable[str], of: Callable[[str], str]) -> dict[str, list[str]]:
    """Files by class, both sorted."""
    classes: dict[str, list[str]] = {}
    for name in sorted(names):
        classes.setdefault(of(name), []).append(name)
    return dict(sorted(classes.items()))


def counted(path: Path, classes: Mapping[str, Sequence[str]], num_classes: int, images: int) -> None:
    """DataError unless these are the published numbers."""
    found = sum(map(len, classes.values()))
    if (len(classes), found) != (num_classes, images):
        raise DataError(
            f"{path} has {found} images of {len(classes)} classes, not {images} of {num_classes}; "
            f"put the published data there"
        )


def contents(path: Path, classes: Mapping[str, Sequence[str]], side: int, work: Work, say: Say) -> Contents:
    """Colour pictures of an archive or of an unpacked folder, class after class."""
    names = [name for files in classes.values() for name in files]
    counts = tuple(len(files) for files in classes.values())
    return Contents(tuple(classes), counts, (3, side, side), tar_in_order(path, names, (3, side, side), work, say))


def tar_in_order(
    path: Path, names: Sequence[str], shape: tuple[int, ...], work: Work, say: Say
) -> Iterator[NDArray[np.uint8]]:
    """work(name, content) of the named files in blocks, in the order of `names`, whatever the archive's order is."""
    row = {name: number for number, name in enumerate(names)}
    size = int(np.prod(shape))
    with _scratch(len(names) * size) as file:
        for name, item in _worked(path, names, work, say):
            assert item.shape == shape, f"{item.shape}, not {shape}"
            file.seek(row[name] * size)
            file.write(item.tobytes())
        file.seek(0)
        for start in range(0, len(names), BLOCK):
            block = file.read(size * min(BLOCK, len(names) - start))
            yield np.frombuffer(block, np.uint8).reshape(-1, *shape)


def _worked(path: Path, names: Sequence[str], work: Work, say: Say) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    order: deque[str] = deque()  # in_order keeps the order of what it is given
    seen: set[str] = set()

    def jobs() -> Iterator[tuple[str, bytes]]:
        for member in _picked(path, names):
            if member.name in seen:
                raise DataError(f"{path} holds {member.name} twice; put the published archive there")
            seen.add(member.name)
            order.append(member.name)
            yield member.name, member.read()

    due = time.monotonic() + SPEAK_EVERY_S
    for done, item in enumerate(in_order(jobs(), lambda job: work(*job))):
        yield order.popleft(), item
        if time.monotonic() > due:
            say(f"{path.name}: {done + 1} of {len(names)} pictures read")
            due = time.monotonic() + SPEAK_EVERY_S
    _all_there(path, names, seen)


@contextmanager
def _scratch(size: int) -> Iterator[IO[bytes]]:
    """A file without a name, which ends with the process that has it open."""
    cache = cache_root()
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    folder = cache if os.access(cache, os.W_OK) else None  # the system's: packed() does without a cache folder, too
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as problem:
        where = f"{folder or tempfile.gettempdir()} does not take {size / 1e6:.0f} MB for a while ({problem})"
        raise DataError(f"cache: {where}; set METARUN_CACHE to another folder") from problem
