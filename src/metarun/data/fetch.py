"""Published files, brought to a local folder whole and checked, or an error that says which file to put where."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from metarun.data.pool import DataError, Say

BLOCK = 1 << 16
SPEAK_EVERY_S = 2.0
SILENCE_S = 30  # a server that sends nothing for so long is given up


def fetch(path: Path, mirrors: Sequence[str], md5: str, say: Say) -> Path:
    """`path`, downloaded unless it is there from the first of `mirrors` that holds a file of this name and checksum.

    What is there is taken as it is: people pack archives anew, which leaves the images and not the checksum.
    """
    if path.is_file():
        return path
    failures: list[str] = []
    for mirror in mirrors:
        try:
            _download(f"{mirror.rstrip('/')}/{path.name}", path, md5, say)
            return path
        except urllib.error.HTTPError as problem:
            problem.close()  # it holds the connection
            failures.append(f"{mirror}: {problem}")
        except (OSError, ValueError, http.client.HTTPException) as problem:
            cause = problem.reason if isinstance(problem, urllib.error.URLError) else problem
            failures.append(f"{mirror}: {str(cause) or type(cause).__name__}")
    tried = "; ".join(failures) or "no mirror given"
    raise DataError(f"{path.name} is missing and cannot be downloaded ({tried}); put it at {path}")


def _download(url: str, path: Path, md5: str, say: Say) -> None:
    """Written beside the target and renamed onto it once length and checksum are right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_S) as answer, part.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            say(f"downloading {url} ({size / 1e6:.1f} MB)")
            found = _copy(answer, file.write, size, lambda done: say(f"downloading {path.name}: {done}"))
        if found != md5:
            raise OSError(f"{path.name} has md5 {found}, not {md5}")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _copy(answer: http.client.HTTPResponse, write: Callable[[bytes], int], size: int, progress: Say) -> str:
    """The md5 of what was copied."""
    digest = hashlib.md5(usedforsecurity=False)
    copied = 0
    due = time.monotonic() + SPEAK_EVERY_S
    while block := answer.read(BLOCK):
        digest.update(block)
        write(block)
        copied += len(block)
        if time.monotonic() > due:
            progress(f"{copied / 1e6:.1f} of {size / 1e6:.1f} MB" if size else f"{copied / 1e6:.1f} MB")
            due = time.monotonic() + SPEAK_EVERY_S
    if size and copied != size:
        raise OSError(f"the connection ended after {copied} of {size} bytes")
    return digest.hexdigest()
