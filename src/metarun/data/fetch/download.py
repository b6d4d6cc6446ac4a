"""Downloads a published file to a local path, whole and checked, or says which file to put where.

A download is written to NAME.part, and NAME.part.json says where it comes from; a complete and correct file is renamed
to NAME. After a broken connection or Ctrl-C the two files stay, and the next attempt continues from them.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from metarun.data.fetch.partial_file import (
    READ_BYTES,
    DownloadNote,
    DownloadProgress,
    PartialFile,
    not_writable,
    readable_size,
)
from metarun.data.store.pool import DataError, Say, cache_root

SILENCE_S = 30.0  # a server that sends nothing for this long is given up
ROUNDS = 2  # attempts at an address whose connection broke
AGENT = "metarun"


class _ConnectionLost(Exception):
    """The connection broke; the address is worth another attempt."""


class _FileChanged(_ConnectionLost):
    """The bytes kept from before are not the beginning of what this address has now."""


class _WrongFile(Exception):
    """This address does not send the file that is wanted."""


def fetch(path: Path, addresses: Sequence[str], md5: str | None, say: Say) -> Path:
    """`path`, downloaded if it is missing from the first address that sends a file with this MD5.

    A file that is there already is not compared with the MD5: people repack archives, which keeps the images only.
    """
    if path.exists():
        return path
    if not addresses:
        raise DataError(f"{path.name} is missing and cannot be downloaded (no address known); put it at {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise not_writable(path, problem) from problem
    with _locked_partial_file(path, say) as part:
        if not path.exists():  # else another process was first
            _try_addresses(part, addresses, md5, say)
    return path


@contextmanager
def _locked_partial_file(path: Path, say: Say) -> Iterator[PartialFile]:
    """One process downloads and the others wait; where locks do not work, each writes a file of its own."""
    from filelock import FileLock, Timeout  # late: a run that finds its data takes no lock

    where = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    lock = FileLock(cache_root() / "locks" / f"{where}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{path.name}: another process downloads it; waiting")
            lock.acquire()
    except (OSError, NotImplementedError) as problem:  # NotImplementedError: a file system without locks
        say(f"{path.name}: downloaded without a lock, as {lock.lock_file} cannot be used ({problem})")
        part = PartialFile(path.with_name(f"{path.name}.{os.getpid()}.part"), path)
        try:
            yield part
        finally:
            part.delete()
        return
    try:
        yield PartialFile(path.with_name(f"{path.name}.part"), path)
    finally:
        lock.release()


def _try_addresses(part: PartialFile, addresses: Sequence[str], md5: str | None, say: Say) -> None:
    failures: dict[str, str] = {}
    left = list(dict.fromkeys(addresses))
    for _ in range(ROUNDS):
        broken = []
        for address in left:
            try:
                return _download_from(address, part, md5, say)
            except (_ConnectionLost, _WrongFile) as problem:
                failures[address] = str(problem)
                broken += [address] if isinstance(problem, _ConnectionLost) else []
        left = broken
    reasons = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
    path, done = part.target, part.file.stat().st_size if part.file.exists() else 0
    if not done:
        part.delete()
    kept = f"; {readable_size(done)} are kept and the next try goes on from there" if done else ""
    raise DataError(f"{path.name} is missing and cannot be downloaded ({reasons}){kept}; put it at {path}")


def _download_from(address: str, part: PartialFile, md5: str | None, say: Say) -> None:
    name = part.target.name
    try:
        found = _download_or_resume(address, part, md5, say)
    except _FileChanged as problem:
        say(f"{name}: {problem}; once more from the start")
        part.delete()
        found = _download_or_resume(address, part, md5, say)
    if md5 not in (None, found):
        part.delete()
        raise _WrongFile(f"{name} has md5 {found}, not {md5}")
    if md5 is None:
        say(f"{name}: md5 {found}; none was published to compare it with")
    try:
        os.replace(part.file, part.target)
    except OSError as problem:
        raise not_writable(part.target, problem) from problem
    finally:
        part.delete()


def _download_or_resume(address: str, part: PartialFile, md5: str | None, say: Say) -> str:
    """The MD5 of the complete file. Resumes if the bytes kept are of this very file, or if its MD5 is known."""
    note = part.read_note()
    validator = note.validator if note and note.address == address else None
    start = part.file.stat().st_size if note and (validator or md5 is not None) else 0
    known_size = note.size if note else None
    if start and start == known_size:
        found = part.md5_of_first(start).hexdigest()
    else:
        headers = {"User-Agent": AGENT}
        if start:
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
        found = _request(address, headers, part, start, known_size, say)
    if start and md5 not in (None, found):
        raise _FileChanged("the two parts of the download are not of one file")
    return found


def _request(
    address: str, headers: dict[str, str], part: PartialFile, start: int, known_size: int | None, say: Say
) -> str:
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=SILENCE_S) as answer:
            return _receive(answer, address, part, start, known_size, say)
    except urllib.error.HTTPError as problem:
        with problem:  # it holds the connection
            reason = _failure_text(problem)
        if problem.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            raise _FileChanged("the file is shorter now") from problem
        passing = problem.code >= 500 or problem.code == http.HTTPStatus.TOO_MANY_REQUESTS
        raise (_ConnectionLost if passing else _WrongFile)(reason) from problem
    except (OSError, http.client.HTTPException) as problem:
        raise _ConnectionLost(_failure_text(problem)) from problem
    except ValueError as problem:  # the address is no URL
        raise _WrongFile(_failure_text(problem)) from problem


def _failure_text(problem: Exception) -> str:
    if isinstance(problem, urllib.error.HTTPError):
        circle = "infinite loop" in str(problem)
        return "it redirects in a circle" if circle else str(problem).splitlines()[0]
    cause = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    if isinstance(cause, TimeoutError):
        return f"silent for {SILENCE_S:g} s"
    return (str(cause) or type(cause).__name__).splitlines()[0]


def _receive(
    answer: http.client.HTTPResponse, address: str, part: PartialFile, start: int, known_size: int | None, say: Say
) -> str:
    """Writes what the server sends and returns the MD5 of the file. `known_size`: as told when the download began."""
    first, total = _byte_range(answer)
    if first and (first != start or known_size not in (None, total)):
        raise _FileChanged(f"there are {total} bytes, and there were {known_size}")
    block = answer.read1(READ_BYTES)
    if not first and _is_web_page(block, answer.headers.get_content_type(), part.target):
        raise _WrongFile("sends a web page, not the file; perhaps it wants a login or a click in a browser")
    part.check_free_space(total - first)
    tag = answer.headers.get("ETag", "")
    validator = answer.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
    size = readable_size(total) if total else "size unknown"
    say(f"downloading {address} ({size}{', resumed' if first else ''})")
    digest, progress = part.md5_of_first(first), DownloadProgress(first, total)
    with part.open("ab" if first else "wb", DownloadNote(address, validator, total)) as file:
        while block:
            part.append(file, block)
            digest.update(block)
            if progress.add(len(block)):
                say(f"{part.target.name}: {progress}")
            block = answer.read1(READ_BYTES)
    if total and progress.done != total:
        raise _ConnectionLost(f"the connection ended after {progress.done} of {total} bytes")
    return digest.hexdigest()


def _byte_range(answer: http.client.HTTPResponse) -> tuple[int, int]:
    """The number of the first byte that comes, and the size of the whole file (0: unknown)."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT and span:
        return int(span[1]), int(span[2])
    return 0, int(answer.headers.get("Content-Length") or 0)


def _is_web_page(block: bytes, content_type: str, path: Path) -> bool:
    if path.suffix in (".html", ".htm", ".xml"):
        return False
    text = block.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html")) or (content_type == "text/html" and text.startswith(b"<"))
