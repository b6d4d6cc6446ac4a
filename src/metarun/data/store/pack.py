"""A data set packed once into one file that later runs map into memory: nothing is read but what is touched.

KEY.npy is a plain .npy of all items and then the CRC-32 of its bytes, a trailer that numpy does not read; KEY.json
beside it has the classes. Both are written whole or not at all, by the first process that asks.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.contents import Contents, Rows, Twin, Twins
from metarun.data.store.pool import DataError, Pool, Say, Splits, cache_root, make_pool

if TYPE_CHECKING:
    from metarun.types import Split

CRC_BYTES = 4
BLOCK = 1 << 22
VERIFIED_BYTES = 1 << 26  # smaller files are read through at every opening (0.1 s), larger ones by `data check`
IN_MEMORY_BYTES = 1 << 31  # what may be kept in memory where there is no room on the disk
FORMAT = 1
SHOWN = 3  # examples in a message

Duplicates = Literal["refuse", "warn"]  # of an item that lies in two splits


class Pack(NamedTuple):
    items: NDArray[Any]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    groups: tuple[str, ...]
    twins: tuple[Twin, ...]

    def numbers(self, names: Mapping[Split, Sequence[str]], where: str) -> dict[Split, tuple[int, ...]]:
        """Splits by name into splits by number; `where` says where the names come from."""
        place = {name: number for number, name in enumerate(self.names)}
        missing = [name for listed in names.values() for name in listed if name not in place]
        if missing:
            raise DataError(
                f"{where} names {len(missing)} classes that are not there ({', '.join(missing[:SHOWN])}, ...); "
                f"there are {len(place)}, such as {self.names[0]}"
            )
        return {split: tuple(place[name] for name in listed) for split, listed in names.items()}

    def pool(self, splits: Splits, duplicates: Duplicates, say: Say) -> Pool:
        """No class is in two splits, and no item: a picture copied from training into test is refused."""
        taken: dict[int, str] = {}
        for split, classes in splits.items():
            for number in classes:
                if number in taken:
                    raise DataError(f"class {self.names[number]} is in the {taken[number]} and in the {split} split")
                taken[number] = split
        apart = [twin for twin in self.twins if taken.get(twin.first, "") != taken.get(twin.second, "")]
        apart = [twin for twin in apart if twin.first in taken and twin.second in taken]
        if apart:
            shown = "; ".join(
                f"{self.names[twin.first]} ({taken[twin.first]}) and {self.names[twin.second]} ({taken[twin.second]})"
                for twin in apart[:SHOWN]
            )
            told = f"{len(apart)} items are the same in classes of two splits: {shown}"
            if duplicates == "refuse":
                raise DataError(f"{told}; data.duplicates=warn goes on all the same")
            say(told)
        return make_pool(self.items, self.counts, self.names, splits, self.groups)


def digest(*parts: object) -> str:
    """Twelve hex digits that name a packed file by all that decides what is in it."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def packed(key: str, make: Callable[[], Contents], say: Say, folder: Path | None = None) -> Pack:
    """make()'s contents from a file, which the first process to ask writes; in memory if it cannot be written."""
    folder = folder or cache_root()
    path = folder / f"{key}.npy"
    found = _open(path)
    if found is not None:
        return found
    from filelock import FileLock  # late: a warm start takes no lock

    lock = FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as problem:  # the latter: a file system without locks
        return _in_memory(make(), key, f"{folder} cannot be used ({problem})", say)
    try:
        found = _open(path)
        return _make_and_keep(path, make, say) if found is None else found
    finally:
        lock.release()


def _make_and_keep(path: Path, make: Callable[[], Contents], say: Say) -> Pack:
    contents = make()
    needed, free = _size(contents), shutil.disk_usage(path.parent).free
    if needed > free:
        why = f"{path.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed"
        return _in_memory(contents, path.stem, why, say)
    try:
        with _replacing(path) as part:
            twins = _write(part, contents, path.stem, say)
        _describe(path, contents, twins)
    except _Unwritable as problem:
        return _in_memory(make(), path.stem, f"{path} cannot be written ({problem})", say)
    found = _open(path)
    if found is None:
        raise DataError(f"cache: {path} was written and cannot be read back; set METARUN_CACHE to another folder")
    return found


def _size(contents: Contents) -> int:
    return int(np.prod(contents.shape, dtype=np.int64)) * contents.dtype.itemsize


def _in_memory(contents: Contents, key: str, why: str, say: Say) -> Pack:
    if _size(contents) > IN_MEMORY_BYTES:
        raise DataError(f"cache: {why}; set METARUN_CACHE to a folder with room for {key}")
    say(f"cache: {why}; {key} is kept in memory for this run only")
    rows, twins = Rows(contents, key, say), Twins(contents)
    items = np.concatenate([twins.seen(block) for block in rows])
    items.flags.writeable = False
    return Pack(items, contents.names, contents.counts, contents.groups, twins.found)


class _Unwritable(Exception):
    """The disk refused, as opposed to the data."""


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Written beside the target, under the lock, then renamed onto it."""
    part = path.with_suffix(".part")
    try:
        try:
            file = part.open("w+b")
        except OSError as problem:
            raise _Unwritable(problem) from problem
        with file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(file: IO[bytes], contents: Contents, key: str, say: Say) -> tuple[Twin, ...]:
    twins, crc = Twins(contents), 0
    about = {"descr": contents.dtype.str, "fortran_order": False, "shape": contents.shape}
    np.lib.format.write_array_header_2_0(file, about)
    file.flush()
    file.seek(0)
    crc = zlib.crc32(file.read())
    for block in Rows(contents, key, say):
        data = twins.seen(block).tobytes()
        crc = zlib.crc32(data, crc)
        _put(file, data)
    _put(file, crc.to_bytes(CRC_BYTES, "big"))
    return twins.found


def _put(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as problem:
        raise _Unwritable(problem) from problem


def _describe(path: Path, contents: Contents, twins: tuple[Twin, ...]) -> None:
    about = {
        "format": FORMAT,
        "names": contents.names,
        "counts": contents.counts,
        "groups": contents.groups,
        "twins": twins,
        "crc": _trailer(path),
    }
    text = json.dumps(about)
    with _replacing(path.with_suffix(".json")) as file:
        _put(file, f"{zlib.crc32(text.encode()):08x}{text}".encode())


def _open(path: Path) -> Pack | None:
    """None where a file is absent or not what was written."""
    try:
        text = path.with_suffix(".json").read_text()
        about = json.loads(text[8:])
        if int(text[:8], 16) != zlib.crc32(text[8:].encode()) or about["format"] != FORMAT:
            return None
        if about["crc"] != _trailer(path) or (path.stat().st_size <= VERIFIED_BYTES and not is_whole(path)):
            return None
        items = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.stat().st_size != items.offset + items.nbytes + CRC_BYTES:
            return None
    except (OSError, ValueError, EOFError, KeyError):
        return None
    twins = tuple(Twin(*twin) for twin in about["twins"])
    return Pack(items, tuple(about["names"]), tuple(about["counts"]), tuple(about["groups"]), twins)


def advise(items: np.memmap[Any, Any]) -> None:
    """Tasks touch single items here and there: reading ahead would bring in what nobody asked for."""
    if hasattr(mmap, "MADV_RANDOM"):
        items._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # numpy does not show its map


def _trailer(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(-CRC_BYTES, os.SEEK_END)
        return int.from_bytes(file.read(), "big")


def is_whole(path: Path) -> bool:
    """Whether a packed file's bytes are those that were written."""
    left, crc = path.stat().st_size - CRC_BYTES, 0
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(BLOCK, left))
            if not block:
                return False
            crc = zlib.crc32(block, crc)
            left -= len(block)
        return file.read() == crc.to_bytes(CRC_BYTES, "big")
