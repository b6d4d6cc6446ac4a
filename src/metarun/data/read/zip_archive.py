"""Zip archives read in place, without unpacking; two archives are compared by the files in them."""

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

LEADS_OUT = re.compile(r"^/|^[A-Za-z]:|\\|(^|/)\.\.(/|$)|\0")
SYSTEM_FILES = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._[^/]*$|Thumbs\.db$|desktop\.ini$)|/$")  # and folders
ZIP_ERRORS = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: a password
HEAD_BYTES = 1 << 20  # in which a web page is looked for


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive whose file names have been checked."""
    try:
        file = zipfile.ZipFile(path)
    except ZIP_ERRORS as problem:
        reason = _why_no_zip(path, problem)
        raise DataError(f"{path} is no whole zip archive ({reason}); get the file again") from problem
    with file:
        for name in file.namelist():
            if LEADS_OUT.search(name):
                raise DataError(f"{path}: the name {name!r} leads out of the archive; get the file again")
        yield file


def zip_names(file: zipfile.ZipFile) -> list[str]:
    """The names of the archive's files in order, without those that an operating system adds."""
    return sorted(name for name in file.namelist() if not SYSTEM_FILES.search(name))


def zip_bytes(file: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one file; zipfile compares their CRC."""
    try:
        return file.read(name)
    except ZIP_ERRORS as problem:
        raise DataError(f"{file.filename}: {name} cannot be read ({problem}); get the file again") from problem


def content_digest(path: Path) -> str:
    """A digest of the files in an archive that does not depend on their order, dates, compression or top folder."""
    with open_zip(path) as file:
        names = zip_names(file)
        if len(set(names)) < len(names):
            twice = next(one for one, other in itertools.pairwise(names) if one == other)
            raise DataError(f"{path} has {twice} twice; get the file again")
        common = _common_folders(names)
        lines = sorted(f"{name[common:]}\0{hashlib.sha256(zip_bytes(file, name)).hexdigest()}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _common_folders(names: list[str]) -> int:
    """The length of the folders that all names begin with."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return 0
    length = len(tops.pop()) + 1
    return length + _common_folders([name[length:] for name in names])


def _why_no_zip(path: Path, problem: Exception) -> str:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(HEAD_BYTES).lstrip()[:64].lower()
        if start.startswith((b"<!doctype html", b"<html")):
            return "it is a web page"
    return str(problem) or type(problem).__name__
