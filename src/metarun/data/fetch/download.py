"""Published files, brought to a local folder whole and checked, or an error that says which file to put where.

A download is written to NAME.part, with where it comes from in NAME.part.json, and renamed to NAME when it is right. A
connection that broke, or Ctrl-C, leaves the two behind, and the next try goes on from there.
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
from typing import Any

from metarun.data.fetch.partial_file import BLOCK, Pace, Part, size, unwritable
from metarun.data.store.pool import DataError, Say, cache_root

SILENCE_S = 30.0  # a server that sends nothing for so long is given up
ROUNDS = 2  # over the addresses whose connection broke
AGENT = "metarun"


class _Broken(Exception):
    """The connection, not the file: worth another try."""


class _Changed(_Broken):
    """What was kept is not the beginning of what this address has."""


class _Useless(Exception):
    """What this address sends is not the file."""


def fetch(path: Path, addresses: Sequence[str], md5: str | None, say: Say) -> Path:
    """`path`, downloaded unless it is there from the first address that holds a file of this checksum.

    What is there is taken as it is: people pack archives anew, which leaves the images and not the checksum.
    """
    if path.exists():
        return path
    if not addresses:
        raise DataError(f"{path.name} is missing and cannot be downloaded (no address known); put it at {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise unwritable(path, problem) from problem
    with _alone(path, say) as part:
        if not path.exists():  # else another process was first
            _try_all(part, addresses, md5, say)
    return path


@contextmanager
def _alone(path: Path, say: Say) -> Iterator[Part]:
    """One process downloads, others wait; without locks each writes a file of its own."""
    from filelock import FileLock, Timeout  # late: a warm start takes no lock

    where = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    lock = FileLock(cache_root() / "locks" / f"{where}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{path.name}: another process downloads it; waiting")
            lock.acquire()
    except (OSError, NotImplementedError) as problem:  # the latter: a file system without locks
        say(f"{path.name}: downloaded without a lock, as {lock.lock_file} cannot be used ({problem})")
        part = Part(path.with_name(f"{path.name}.{os.getpid()}.part"), path)
        try:
            yield part
        finally:
            part.delete()
        return
    try:
        yield Part(path.with_name(f"{path.name}.part"), path)
    finally:
        lock.release()


def _try_all(part: Part, addresses: Sequence[str], md5: str | None, say: Say) -> None:
    failures: dict[str, str] = {}
    left = list(dict.fromkeys(addresses))
    for _ in range(ROUNDS):
        broken = []
        for address in left:
            try:
                return _from(address, part, md5, say)
            except (_Broken, _Useless) as problem:
                failures[address] = str(problem)
                broken += [address] if isinstance(problem, _Broken) else []
        left = broken
    told = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
    path, done = part.target, part.file.stat().st_size if part.file.exists() else 0
    if not done:
        part.delete()
    kept = f"; {size(done)} are kept and the next try goes on from there" if done else ""
    raise DataError(f"{path.name} is missing and cannot be downloaded ({told}){kept}; put it at {path}")


def _from(address: str, part: Part, md5: str | None, say: Say) -> None:
    name = part.target.name
    try:
        found = _download(address, part, md5, say)
    except _Changed as problem:
        say(f"{name}: {problem}; once more from the start")
        part.delete()
        found = _download(address, part, md5, say)
    if md5 not in (None, found):
        part.delete()
        raise _Useless(f"{name} has md5 {found}, not {md5}")
    if md5 is None:
        say(f"{name}: md5 {found}; none was published to compare it with")
    try:
        os.replace(part.file, part.target)
    except OSError as problem:
        raise unwritable(part.target, problem) from problem
    finally:
        part.delete()


def _download(address: str, part: Part, md5: str | None, say: Say) -> str:
    """The md5 of the file, which goes on from what there is where that may be."""
    before = part.read()
    same = before.get("address") == address and before.get("validator")
    start = part.file.stat().st_size if before and (same or md5 is not None) else 0
    if start and start == before.get("size"):
        found: str = part.md5_of_first(start).hexdigest()
    else:
        headers = {"User-Agent": AGENT}
        if start:
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": before["validator"]} if same else {})
        found = _ask(address, headers, part, start, before.get("size"), say)
    if start and md5 not in (None, found):
        raise _Changed("the two parts of the download are not of one file")
    return found


def _ask(address: str, headers: dict[str, str], part: Part, start: int, known: int | None, say: Say) -> str:
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=SILENCE_S) as answer:
            return _take(answer, address, part, start, known, say)
    except urllib.error.HTTPError as problem:
        with problem:  # it holds the connection
            reason = _reason(problem)
        if problem.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            raise _Changed("the file is shorter now") from problem
        passing = problem.code >= 500 or problem.code == http.HTTPStatus.TOO_MANY_REQUESTS
        raise (_Broken if passing else _Useless)(reason) from problem
    except (OSError, http.client.HTTPException) as problem:
        raise _Broken(_reason(problem)) from problem
    except ValueError as problem:  # no address at all
        raise _Useless(_reason(problem)) from problem


def _reason(problem: Exception) -> str:
    if isinstance(problem, urllib.error.HTTPError):
        circle = "infinite loop" in str(problem)
        return "it redirects in a circle" if circle else str(problem).splitlines()[0]
    cause = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    if isinstance(cause, TimeoutError):
        return f"silent for {SILENCE_S:g} s"
    return (str(cause) or type(cause).__name__).splitlines()[0]


def _take(answer: Any, address: str, part: Part, start: int, known: int | None, say: Say) -> str:
    """All that the server sends; `known` is the size that was told when the download began."""
    first, total = _extent(answer)
    if first and (first != start or known not in (None, total)):
        raise _Changed(f"there are {total} bytes, and there were {known}")
    block = answer.read1(BLOCK)
    if not first and _is_page(block, answer.headers.get_content_type(), part.target):
        raise _Useless("sends a web page, not the file; perhaps it wants a login or a click in a browser")
    part.check_room(total - first)
    tag = answer.headers.get("ETag", "")
    validator = answer.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
    say(f"downloading {address} ({size(total) if total else 'size unknown'}{', resumed' if first else ''})")
    digest, pace = part.md5_of_first(first), Pace(first, total)
    with part.open("ab" if first else "wb", {"address": address, "validator": validator, "size": total}) as file:
        while block:
            part.put(file, block)
            digest.update(block)
            if pace.due(len(block)):
                say(f"{part.target.name}: {pace}")
            block = answer.read1(BLOCK)
    if total and pace.done != total:
        raise _Broken(f"the connection ended after {pace.done} of {total} bytes")
    found: str = digest.hexdigest()
    return found


def _extent(answer: Any) -> tuple[int, int]:
    """The number of the first byte to come, and the size of the whole file, 0 if unknown."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if getattr(answer, "status", None) == http.HTTPStatus.PARTIAL_CONTENT and span:
        return int(span[1]), int(span[2])
    return 0, int(answer.headers.get("Content-Length") or 0)


def _is_page(block: bytes, told: str, path: Path) -> bool:
    if path.suffix in (".html", ".htm", ".xml"):
        return False
    text = block.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html")) or (told == "text/html" and text.startswith(b"<"))
