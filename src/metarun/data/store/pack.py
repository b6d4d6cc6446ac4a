"""A data set packed once into one file, which later runs map into memory and read only where they touch it.

KEY.npy is a plain .npy file of all items, followed by the CRC-32 of its bytes, which numpy does not read. KEY.json
beside it describes the classes. The first process that asks writes both; an unfinished file never gets these names.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from metarun.data.store.contents import Contents, Duplicate, DuplicateFinder, checked_blocks
from metarun.data.store.pool import DataError, Items, Pool, Say, Splits, cache_root, make_pool
from metarun.errors import first_few

if TYPE_CHECKING:
    from metarun.types import Split

CRC_BYTES = 4
CRC_BLOCK = 1 << 22  # bytes read at a time
VERIFIED_BYTES = 1 << 26  # smaller files are read whole at every opening (0.1 s), larger ones by `data check` only
IN_MEMORY_BYTES = 1 << 31  # limit of what is kept in memory if the disk has no room
PACK_FORMAT = 2  # of KEY.json; a file of another format is packed again

Duplicates = Literal["refuse", "warn"]  # of an item in classes of two splits


class Pack(NamedTuple):
    """A packed data set, before its classes are assigned to splits."""

    items: Items
    names: tuple[str, ...]
    counts: tuple[int, ...]
    groups: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]

    def numbers(self, names: Mapping[Split, Sequence[str]], where: str) -> dict[Split, tuple[int, ...]]:
        """Class numbers of each split from class names; `where` says in an error where the names come from."""
        number_of = {name: number for number, name in enumerate(self.names)}
        missing = [name for listed in names.values() for name in listed if name not in number_of]
        if missing:
            raise DataError(
                f"{where} names {len(missing)} classes that the data does not have ({first_few(missing)}); "
                f"it has {len(number_of)}, such as {self.names[0]}"
            )
        return {split: tuple(number_of[name] for name in listed) for split, listed in names.items()}

    def pool(self, splits: Splits, duplicates: Duplicates, say: Say) -> Pool:
        """Refuses a class in two splits; refuses an item in classes of two splits, or warns of it."""
        split_of: dict[int, str] = {}
        for split, classes in splits.items():
            for number in classes:
                if number in split_of:
                    raise DataError(f"class {self.names[number]} is in the {split_of[number]} and in the {split} split")
                split_of[number] = split
        found = across_splits(self.duplicates, split_of)
        if found:
            shown = "; ".join(
                f"{self.names[pair.first]} ({split_of[pair.first]}) and "
                f"{self.names[pair.second]} ({split_of[pair.second]})"
                for pair in found[:3]
            )
            message = f"{len(found)} items are the same in classes of two splits: {shown}"
            if duplicates == "refuse":
                raise DataError(f"{message}; data.duplicates=warn goes on all the same")
            say(message)
        return make_pool(self.items, self.counts, self.names, splits, self.groups)


def across_splits(duplicates: Sequence[Duplicate], split_of: Mapping[int, str]) -> list[Duplicate]:
    """Duplicates whose two classes are in different splits; a class outside all splits does not count."""
    inside = [pair for pair in duplicates if pair.first in split_of and pair.second in split_of]
    return [pair for pair in inside if split_of[pair.first] != split_of[pair.second]]


def digest(*parts: object) -> str:
    """Twelve hex digits of everything given: the same parts give the same digest in every process."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def packed(key: str, make: Callable[[], Contents], say: Say, folder: Path | None = None) -> Pack:
    """The packed file KEY.npy, or make()'s contents packed now; kept in memory if the file cannot be written."""
    folder = folder or cache_root()
    path = folder / f"{key}.npy"
    found = _open_pack(path)
    if found is not None:
        return found
    from filelock import FileLock  # late: a run that finds the file takes no lock

    lock = FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as problem:  # NotImplementedError: a file system without locks
        return _pack_in_memory(make(), key, f"{folder} cannot be used ({problem})", say)
    try:
        found = _open_pack(path)
        return _pack_into_file(path, make, say) if found is None else found
    finally:
        lock.release()


def _pack_into_file(path: Path, make: Callable[[], Contents], say: Say) -> Pack:
    contents = make()
    needed, free = _num_bytes(contents), shutil.disk_usage(path.parent).free
    if needed > free:
        why = f"{path.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed"
        return _pack_in_memory(contents, path.stem, why, say)
    try:
        with _replacing(path) as part:
            duplicates = _write_items(part, contents, path.stem, say)
        _write_description(path, contents, duplicates)
    except _CannotWrite as problem:
        return _pack_in_memory(make(), path.stem, f"{path} cannot be written ({problem})", say)
    found = _open_pack(path)
    if found is None:
        raise DataError(f"cache: {path} was written and cannot be read back; set METARUN_CACHE to another folder")
    return found


def _num_bytes(contents: Contents) -> int:
    return int(np.prod(contents.shape, dtype=np.int64)) * contents.dtype.itemsize


def _pack_in_memory(contents: Contents, key: str, why: str, say: Say) -> Pack:
    if _num_bytes(contents) > IN_MEMORY_BYTES:
        raise DataError(f"cache: {why}; set METARUN_CACHE to a folder with room for {key}")
    say(f"cache: {why}; {key} is kept in memory for this run only")
    finder, blocks = DuplicateFinder(contents), list[Items]()
    for block in checked_blocks(contents, key, say):
        finder.add(block)
        blocks.append(block)
    items = np.concatenate(blocks)
    items.flags.writeable = False
    return Pack(items, contents.names, contents.counts, contents.groups, finder.found)


class _CannotWrite(Exception):
    """The disk refused, and nothing is wrong with the data."""


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file NAME.part, which is renamed to `path` at the end and deleted after an error."""
    part = path.with_suffix(".part")
    try:
        try:
            file = part.open("w+b")
        except OSError as problem:
            raise _CannotWrite(problem) from problem
        with file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_items(file: IO[bytes], contents: Contents, key: str, say: Say) -> tuple[Duplicate, ...]:
    finder = DuplicateFinder(contents)
    header = {"descr": contents.dtype.str, "fortran_order": False, "shape": contents.shape}
    np.lib.format.write_array_header_2_0(file, header)
    file.flush()
    file.seek(0)
    crc = zlib.crc32(file.read())
    for block in checked_blocks(contents, key, say):
        finder.add(block)
        data = block.tobytes()
        crc = zlib.crc32(data, crc)
        _append(file, data)
    _append(file, crc.to_bytes(CRC_BYTES, "big"))
    return finder.found


def _append(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as problem:
        raise _CannotWrite(problem) from problem


def _write_description(path: Path, contents: Contents, duplicates: tuple[Duplicate, ...]) -> None:
    description = {
        "format": PACK_FORMAT,
        "names": contents.names,
        "counts": contents.counts,
        "groups": contents.groups,
        "duplicates": duplicates,
        "crc": _stored_crc(path),
    }
    text = json.dumps(description)
    with _replacing(path.with_suffix(".json")) as file:
        _append(file, f"{zlib.crc32(text.encode()):08x}{text}".encode())


def _open_pack(path: Path) -> Pack | None:
    """None if a file is missing or does not hold what was written."""
    try:
        text = path.with_suffix(".json").read_text()
        description = json.loads(text[8:])
        if int(text[:8], 16) != zlib.crc32(text[8:].encode()) or description["format"] != PACK_FORMAT:
            return None
        if description["crc"] != _stored_crc(path) or (path.stat().st_size <= VERIFIED_BYTES and not is_whole(path)):
            return None
        items = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.stat().st_size != items.offset + items.nbytes + CRC_BYTES:
            return None
    except (OSError, ValueError, EOFError, KeyError):
        return None
    names, counts, groups = (tuple(description[key]) for key in ("names", "counts", "groups"))
    return Pack(items, names, counts, groups, tuple(Duplicate(*pair) for pair in description["duplicates"]))


def advise_random_access(items: np.memmap[tuple[int, ...], np.dtype[np.uint8 | np.float32]]) -> None:
    """Tells the system not to read ahead: a task needs single items from anywhere in the file."""
    if sys.platform != "win32":
        items._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # numpy does not declare it


def _stored_crc(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(-CRC_BYTES, os.SEEK_END)
        return int.from_bytes(file.read(), "big")


def is_whole(path: Path) -> bool:
    """Whether the CRC-32 at the end of a packed file is that of the bytes before it."""
    left, crc = path.stat().st_size - CRC_BYTES, 0
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(CRC_BLOCK, left))
            if not block:
                return False
            crc = zlib.crc32(block, crc)
            left -= len(block)
        return file.read() == crc.to_bytes(CRC_BYTES, "big")
