"""All images of a data set in one uint8 array, and the cache folder that keeps such arrays between runs."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # types.py imports torch, which no data source needs
    from metarun.types import Split

Say = Callable[[str], None]

CRC_BYTES = 4  # a cache file is a plain .npy and then the CRC-32 of all its bytes, a trailer that numpy does not read
BLOCK = 1 << 22


class DataError(Exception):
    """A problem with data that its user can solve, told in one line."""


class Pool(NamedTuple):
    """Images by class. `images` may be a read-only memory map; build one with `make_pool`, which checks it."""

    images: NDArray[np.uint8]  # [classes, images, C, H, W]
    names: tuple[str, ...]  # "alphabet03/character07"
    splits: dict[Split, tuple[int, ...]]  # class numbers


def make_pool(images: NDArray[np.uint8], names: tuple[str, ...], splits: Mapping[Split, tuple[int, ...]]) -> Pool:
    assert images.dtype == np.uint8, f"{images.dtype}, not uint8"
    assert images.ndim == 5, f"{images.shape}, not [classes, images, C, H, W]"
    assert len(names) == len(images), f"{len(names)} names, {len(images)} classes"
    assert len(set(names)) == len(names), f"{len(names)} names, {len(set(names))} of them different"
    numbers = [number for classes in splits.values() for number in classes]
    assert len(set(numbers)) == len(numbers), f"{len(numbers)} classes in splits, {len(set(numbers))} of them different"
    assert set(numbers) <= set(range(len(images))), f"classes {min(numbers)} to {max(numbers)} of {len(images)}"
    return Pool(images, names, dict(splits))


def cache_root() -> Path:
    """What was computed or downloaded once lies here; safe to delete."""
    chosen = os.environ.get("METARUN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "metarun"


def cached(folder: Path, key: str, make: Callable[[], NDArray[Any]], say: Say) -> NDArray[Any]:
    """make()'s array as a read-only map of a file, which the first process to ask makes; in memory if it cannot be."""
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
        say(f"cache: {folder} cannot be used ({problem}); {key} is kept in memory for this run only")
        return _frozen(make())
    try:
        found = _open(path)
        return _make_and_keep(path, make, say) if found is None else found
    finally:
        lock.release()


def _make_and_keep(path: Path, make: Callable[[], NDArray[Any]], say: Say) -> NDArray[Any]:
    array = make()
    try:
        _write(path, array)
    except OSError as problem:
        say(f"cache: {path} cannot be written ({problem}); it is kept in memory for this run only")
        return _frozen(array)
    found = _open(path)
    return _frozen(array) if found is None else found


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _open(path: Path) -> NDArray[Any] | None:
    """None where the file is absent or differs in any byte from what was written."""
    try:
        if not _is_whole(path):
            return None
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def _is_whole(path: Path) -> bool:
    left = path.stat().st_size - CRC_BYTES
    crc = 0
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(BLOCK, left))
            if not block:
                return False
            crc = zlib.crc32(block, crc)
            left -= len(block)
        return file.read() == crc.to_bytes(CRC_BYTES, "big")


def _write(path: Path, array: NDArray[Any]) -> None:
    """Whole or not at all: written beside the target, under the lock, then renamed onto it."""
    part = path.with_suffix(".part")
    try:
        with part.open("w+b") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            file.seek(0)
            crc = 0
            while block := file.read(BLOCK):
                crc = zlib.crc32(block, crc)
            file.write(crc.to_bytes(CRC_BYTES, "big"))
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
