"""Zip archives read in place: nothing is unpacked to disk, and what is in them is known by its contents."""

from __future__ import annotations

import hashlib
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metarun.data.store.pool import DataError

OUTSIDE = re.compile(r"^/|^[A-Za-z]:|\\|(^|/)\.\.(/|$)|\0")
LITTER = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._[^/]*$|Thumbs\.db$|desktop\.ini$)|/$")
UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: a password
BLOCK = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive whose names have been checked."""
    try:
        file = zipfile.ZipFile(path)
    except UNREADABLE as problem:
        raise DataError(f"{path} is no whole zip archive ({_reason(path, problem)}); get the file anew") from problem
    with file:
        for name in file.namelist():
            if OUTSIDE.search(name):
                raise DataError(f"{path}: the name {name!r} leads out of the archive; get the file anew")
        yield file


def members(file: zipfile.ZipFile) -> list[str]:
    """The names of its files in order, without what an operating system adds."""
    return sorted(name for name in file.namelist() if not LITTER.search(name))


def content(file: zipfile.ZipFile, name: str) -> bytes:
    """One file's bytes, whose CRC is right."""
    try:
        return file.read(name)
    except UNREADABLE as problem:
        raise DataError(f"{file.filename}: {name} cannot be read ({problem}); get the file anew") from problem


def content_digest(path: Path) -> str:
    """The same of two archives with the same files in them, whatever their order, dates, packing and top folder."""
    with opened(path) as file:
        names = members(file)
        if len(set(names)) < len(names):
            twice = next(one for one, other in itertools.pairwise(names) if one == other)
            raise DataError(f"{path} has {twice} twice; get the file anew")
        common = _common(names)
        lines = sorted(f"{name[common:]}\0{hashlib.sha256(content(file, name)).hexdigest()}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _common(names: list[str]) -> int:
    """The length of the folders that all names begin with."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return 0
    length = len(tops.pop()) + 1
    return length + _common([name[length:] for name in names])


def _reason(path: Path, problem: Exception) -> str:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(BLOCK).lstrip()[:64].lower()
        if start.startswith((b"<!doctype html", b"<html")):
            return "it is a web page"
    return str(problem) or type(problem).__name__
