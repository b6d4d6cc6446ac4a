"""A file that is being downloaded: the bytes so far, a note of where they come from, and the progress."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

from metarun.data.store.contents import PROGRESS_EVERY_S
from metarun.data.store.pool import DataError

READ_BYTES = 1 << 18  # received, or read back, at a time
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunningDigest(Protocol):
    """A hashlib object."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class DownloadNote(NamedTuple):
    """Which file the bytes belong to, as its server described it."""

    address: str
    validator: str | None  # ETag, or the date of the last change: another one is another file
    size: int  # of the whole file; 0 if unknown


class PartialFile(NamedTuple):
    """The bytes received so far in `file`, a DownloadNote in `file`.json, and the path of the whole file."""

    file: Path
    target: Path

    @property
    def note_path(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")

    def read_note(self) -> DownloadNote | None:
        """None if nothing was kept, or the note cannot be read."""
        try:
            found = json.loads(self.note_path.read_text())
            note = DownloadNote(str(found["address"]), found["validator"], int(found["size"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return note if self.file.is_file() else None

    def delete(self) -> None:
        for file in (self.file, self.note_path):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def check_free_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.file.parent).free
        if needed > free:
            raise self._disk_full(f"{readable_size(needed)} are needed and {readable_size(free)} are free")

    def open(self, mode: Literal["ab", "wb"], note: DownloadNote) -> IO[bytes]:
        try:
            self.note_path.write_text(json.dumps(note._asdict()))
            return self.file.open(mode)
        except OSError as problem:
            raise self._write_error(problem) from problem

    def append(self, file: IO[bytes], block: bytes) -> None:
        try:
            file.write(block)
            file.flush()
        except OSError as problem:
            raise self._write_error(problem) from problem

    def md5_of_first(self, count: int) -> RunningDigest:
        """The MD5 of the first `count` bytes, to be updated with those that follow."""
        digest = hashlib.md5(usedforsecurity=False)
        if count:
            with self.file.open("rb") as file:
                while block := file.read(min(READ_BYTES, count)):
                    digest.update(block)
                    count -= len(block)
        return digest

    def _write_error(self, problem: OSError) -> DataError:
        if problem.errno not in DISK_FULL:
            self.delete()
            return not_writable(self.target, problem)
        note = self.read_note()
        return self._disk_full(
            f"{readable_size(note.size)} are needed" if note and note.size else "the download did not fit"
        )

    def _disk_full(self, why: str) -> DataError:
        self.delete()
        name, folder = self.target.name, self.target.parent
        return DataError(f"{name}: no room in {folder}, {why}; make room, or set data.root, or put it at {self.target}")


class DownloadProgress:
    """The share of a download that is there, and the time until it ends."""

    def __init__(self, done: int, total: int) -> None:
        self.done, self._first, self._total = done, done, total
        self._began = self._spoke = time.monotonic()

    def add(self, count: int) -> bool:
        """Counts the bytes just received; True if it is time for a line of progress."""
        self.done += count
        if time.monotonic() < self._spoke + PROGRESS_EVERY_S:
            return False
        self._spoke = time.monotonic()
        return True

    def __str__(self) -> str:
        if not self._total:
            return readable_size(self.done)
        share = 100 * self.done // self._total
        per_byte_s = (time.monotonic() - self._began) / (self.done - self._first)
        minutes, seconds = divmod(round((self._total - self.done) * per_byte_s), 60)
        return f"{share} % of {readable_size(self._total)}, {minutes}:{seconds:02} left"


def not_writable(path: Path, problem: OSError) -> DataError:
    why = problem.strerror or str(problem)
    return DataError(f"{path.name}: {path.parent} cannot be written ({why}); set data.root, or put it at {path}")


def readable_size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
