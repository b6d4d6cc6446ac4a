"""A file while it is being downloaded: what has come so far, how fast, and what the disk says to it."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from metarun.data.store.contents import SPEAK_EVERY_S
from metarun.data.store.pool import DataError

BLOCK = 1 << 18
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Part(NamedTuple):
    """The bytes that came, and a note of what they belong to."""

    file: Path
    target: Path

    @property
    def note(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")

    def read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.note.read_text())
            return found if isinstance(found, dict) and self.file.is_file() else {}
        except (OSError, ValueError):
            return {}

    def delete(self) -> None:
        for file in (self.file, self.note):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.file.parent).free
        if needed > free:
            raise self._full(f"{size(needed)} are needed and {size(free)} are free")

    def open(self, mode: str, about: dict[str, Any]) -> IO[bytes]:
        try:
            self.note.write_text(json.dumps(about))
            return self.file.open(mode)
        except OSError as problem:
            raise self._lost(problem) from problem

    def put(self, file: IO[bytes], block: bytes) -> None:
        try:
            file.write(block)
            file.flush()
        except OSError as problem:
            raise self._lost(problem) from problem

    def md5_of_first(self, count: int) -> Any:
        digest = hashlib.md5(usedforsecurity=False)
        if count:
            with self.file.open("rb") as file:
                while block := file.read(min(BLOCK, count)):
                    digest.update(block)
                    count -= len(block)
        return digest

    def _lost(self, problem: OSError) -> DataError:
        if problem.errno not in FULL:
            self.delete()
            return unwritable(self.target, problem)
        had = int(self.read().get("size") or 0)
        return self._full(f"{size(had)} are needed" if had else "the download did not fit")

    def _full(self, why: str) -> DataError:
        self.delete()
        name, folder = self.target.name, self.target.parent
        return DataError(f"{name}: no room in {folder}, {why}; make room, or set data.root, or put it at {self.target}")


class Pace:
    """How far a download is and how long it will take."""

    def __init__(self, done: int, total: int) -> None:
        self.done, self._first, self._total = done, done, total
        self._began = self._spoke = time.monotonic()

    def due(self, more: int) -> bool:
        self.done += more
        if time.monotonic() < self._spoke + SPEAK_EVERY_S:
            return False
        self._spoke = time.monotonic()
        return True

    def __str__(self) -> str:
        if not self._total:
            return size(self.done)
        share = 100 * self.done // self._total
        per_byte_s = (time.monotonic() - self._began) / (self.done - self._first)
        minutes, seconds = divmod(round((self._total - self.done) * per_byte_s), 60)
        return f"{share} % of {size(self._total)}, {minutes}:{seconds:02} left"


def unwritable(path: Path, problem: OSError) -> DataError:
    why = problem.strerror or str(problem)
    return DataError(f"{path.name}: {path.parent} cannot be written ({why}); set data.root, or put it at {path}")


def size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
