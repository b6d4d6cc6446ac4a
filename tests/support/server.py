"""A web server for tests: files of a folder, whole or damaged as the first part of the address says.

with serving(folder) as address:
    fetch(path, [f"{address}/truncated/a.zip", f"{address}/a.zip"], None, say)
    address.ranges  # Range headers in order, None where there was none
"""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PAGE = b"<!DOCTYPE html>\n<html><body>Virus scan warning: do you still want to download?</body></html>\n"
A_LITTLE = 100  # bytes that /stall/ sends before it falls silent
PIECES, PAUSE_S = 20, 0.02  # of /slow/
WAYS = (
    "truncated",  # never more than half of what the header promises, resumed or not
    "drop",  # half, then the connection ends; a Range request is served to the end
    "stall",  # a little, then nothing
    "slow",  # in pieces
    "html",  # a page instead of the file
    "circle",  # sends its reader round and round
    "redirect",  # one redirect, then right
    "norange",  # the whole file, whatever was asked
    "unnamed",  # neither ETag nor Last-Modified
    "wrong",  # other bytes of the same length
    "404",
    "500",
)


class Address(str):
    """http://127.0.0.1:PORT, and what was asked of it."""

    requests: list[str]
    ranges: list[str | None]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # closing it waits for its last answer
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.closing = folder, threading.Event()
        self.address = Address(f"http://127.0.0.1:{self.server_port}")
        self.address.requests, self.address.ranges = [], []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Readers leave when they like."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.address.requests.append(self.path)
        self.server.address.ranges.append(self.headers.get("Range"))
        way, _, name = unquote(self.path).lstrip("/").partition("/")
        if way not in WAYS:
            way, name = "", unquote(self.path).lstrip("/")
        if way.isdigit():
            return self.send_error(int(way))
        if way in ("circle", "redirect"):
            return self._elsewhere(self.path if way == "circle" else f"/{name}")
        if way == "html":
            return self._answer(200, PAGE, len(PAGE), [("Content-Type", "text/html")])
        file = self.server.folder / name
        if not file.is_file():
            return self.send_error(404)
        content = file.read_bytes()
        return self._file(way, bytes(byte ^ 0xFF for byte in content) if way == "wrong" else content)

    def _elsewhere(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, way: str, content: bytes) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = self._start(way, tag)
        if start and start >= len(content):
            return self.send_error(416)
        headers = [] if way == "unnamed" else [("ETag", tag)]
        if start is not None:
            headers.append(("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"))
        wanted, half = content[start or 0 :], len(content) // 2
        sent = {
            "truncated": wanted[: max(half - (start or 0), 0)],
            "drop": wanted[:half] if start is None else wanted,
            "stall": wanted[:A_LITTLE],
        }.get(way, wanted)
        return self._answer(200 if start is None else 206, sent, len(wanted), headers, way)

    def _start(self, way: str, tag: str) -> int | None:
        """The first byte asked for; None: all of them, as where the file is no longer the one meant."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if way == "norange" or not found or self.headers.get("If-Range", tag) != tag:
            return None
        return int(found[1])

    def _answer(self, code: int, sent: bytes, length: int, headers: list[tuple[str, str]], way: str = "") -> None:
        self.send_response(code)
        for name, value in [*headers, ("Content-Length", str(length))]:
            self.send_header(name, value)
        self.end_headers()
        step = -(-len(sent) // PIECES) if way == "slow" else len(sent)
        for at in range(0, len(sent), max(step, 1)):
            self.wfile.write(sent[at : at + step])
            if way == "slow" and self.server.closing.wait(PAUSE_S):
                return
        if way == "stall":
            self.server.closing.wait(60)


@contextmanager
def serving(folder: Path) -> Iterator[Address]:
    with _Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.address
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
