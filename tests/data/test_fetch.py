"""Downloads against a server that does everything wrong: what comes is the file or one line that says what to do."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from metarun.data.fetch import download
from metarun.data.fetch.download import fetch
from metarun.data.store.pool import DataError
from support.server import Address, serving

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
NOWHERE = "http://127.0.0.1:9/a.zip"  # nobody listens


class Place(NamedTuple):
    address: Address
    path: Path  # where the file is wanted

    def at(self, *ways: str) -> list[str]:
        return [f"{self.address}/{way}/a.zip".replace("//a", "/a") for way in ways]

    def part(self) -> Path:
        return self.path.with_name("a.zip.part")

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


def silent(_: str) -> None:
    pass


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "SILENCE_S", 0.2)
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.zip").write_bytes(CONTENT)
    with serving(tmp_path / "web") as address:
        yield Place(address, tmp_path / "data/set/a.zip")


def fails(place: Place, ways: list[str], match: str, md5: str | None = MD5) -> str:
    with pytest.raises(DataError, match=match) as caught:
        fetch(place.path, ways, md5, silent)
    message = str(caught.value)
    assert message.endswith(f"put it at {place.path}")
    assert message.count("put it at") == 1
    assert "\n" not in message
    assert not place.path.exists()
    return message


@pytest.mark.parametrize("way", ["", "redirect", "norange", "unnamed", "slow", "drop"])
@pytest.mark.parametrize("md5", [MD5, None])
def test_the_file_comes_whole(place: Place, way: str, md5: str | None) -> None:
    said: list[str] = []
    assert fetch(place.path, place.at(way), md5, said.append) == place.path
    assert place.path.read_bytes() == CONTENT
    assert place.files() == ["a.zip"]
    assert said[0] == f"downloading {place.at(way)[0]} (0.1 MB)"
    assert any(MD5 in line for line in said) == (md5 is None)


def test_what_is_there_is_taken_as_it_is(place: Place) -> None:
    place.path.parent.mkdir(parents=True)
    place.path.write_bytes(b"packed anew")
    fetch(place.path, place.at(""), MD5, silent)
    assert place.path.read_bytes() == b"packed anew"
    assert place.address.requests == []


def test_mirrors_are_tried_in_turn(place: Place) -> None:
    ways = ["404", "500", "html", "circle", "wrong", "truncated", "stall", ""]
    fetch(place.path, [NOWHERE, "nonsense", *place.at(*ways)], MD5, silent)
    assert place.path.read_bytes() == CONTENT
    assert place.files() == ["a.zip"]
    assert place.address.requests[-1] == "/a.zip"
    assert {request.split("/")[1] for request in place.address.requests} == {*ways[:-1], "a.zip"}


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("404", "404: HTTP Error 404"),
        ("500", "HTTP Error 500"),
        ("html", "sends a web page, not the file"),
        ("circle", "redirects in a circle"),
        ("wrong", f"a.zip has md5 [0-9a-f]{{32}}, not {MD5}"),
        ("nowhere", "HTTP Error 404"),
    ],
)
def test_a_failure_leaves_nothing(place: Place, way: str, reason: str) -> None:
    fails(place, place.at(way), reason.removeprefix("404: "))
    assert place.files() == []


def test_a_web_page_is_recognised_without_a_checksum(place: Place) -> None:
    fails(place, place.at("html"), "sends a web page", md5=None)
    (place.path.parents[2] / "web/a.zip").write_bytes(b"\n<HTML><head>")
    fails(place, place.at(""), "sends a web page", md5=None)
    assert place.files() == []


def test_no_address_and_no_server(place: Place) -> None:
    fails(place, [], "no address known")
    fails(place, [NOWHERE], "Connection refused")
    fails(place, ["nonsense"], "unknown url type")


@pytest.mark.parametrize(
    ("way", "reason", "came"),
    [("truncated", "connection ended after 51200 of 102400 bytes", 51200), ("stall", r"silent for 0.2 s", 200)],
)
def test_a_broken_download_is_kept_and_continued(place: Place, way: str, reason: str, came: int) -> None:
    fails(place, place.at(way), f"{reason}.*; {came} bytes are kept and the next try goes on from there")
    assert place.files() == ["a.zip.part", "a.zip.part.json"]
    assert place.part().read_bytes() == CONTENT[:came]
    said: list[str] = []
    fetch(place.path, place.at(""), MD5, said.append)
    assert place.path.read_bytes() == CONTENT
    assert place.files() == ["a.zip"]
    assert place.address.ranges[-1] == f"bytes={came}-"
    assert said[0].endswith("(0.1 MB, resumed)")


def test_one_retry_goes_on_where_the_connection_ended(place: Place) -> None:
    fetch(place.path, place.at("drop"), MD5, silent)
    assert place.address.ranges == [None, "bytes=51200-"]


def test_without_a_checksum_only_the_same_file_is_continued(place: Place) -> None:
    fails(place, place.at("truncated"), "51200 of 102400", md5=None)
    fetch(place.path, place.at(""), None, silent)
    assert place.path.read_bytes() == CONTENT
    assert place.address.ranges == [None, "bytes=51200-", None]


@pytest.mark.parametrize("md5", ["of the new", None])
def test_a_file_that_changed_is_begun_anew(place: Place, md5: str | None) -> None:
    web = place.path.parents[2] / "web/a.zip"
    changed = CONTENT[::-1]
    for content in (changed, changed[:9000], changed + changed):
        md5 = md5 and hashlib.md5(content, usedforsecurity=False).hexdigest()
        web.write_bytes(CONTENT)
        fails(place, place.at("truncated"), "51200 of 102400", md5=md5)
        web.write_bytes(content)
        fetch(place.path, place.at("") if md5 else place.at("unnamed"), md5, silent)
        assert place.path.read_bytes() == content
        assert place.files() == ["a.zip"]
        place.path.unlink()


def test_a_changed_file_of_the_same_address(place: Place) -> None:
    web = place.path.parents[2] / "web/a.zip"
    fails(place, place.at("truncated"), "51200 of 102400", md5=None)
    web.write_bytes(CONTENT[::-1])
    fails(place, place.at("truncated"), "51200 of 102400", md5=None)
    assert place.part().read_bytes() == CONTENT[::-1][:51200]


def test_a_server_without_ranges_starts_anew(place: Place) -> None:
    fails(place, place.at("truncated"), "51200 of 102400")
    fetch(place.path, place.at("norange"), MD5, silent)
    assert place.path.read_bytes() == CONTENT


def test_a_spoiled_part_does_not_survive_its_checksum(place: Place) -> None:
    fails(place, place.at("truncated"), "51200 of 102400")
    place.part().write_bytes(b"x" * 51200)
    said: list[str] = []
    fetch(place.path, place.at(""), MD5, said.append)
    assert place.path.read_bytes() == CONTENT
    assert any("not of one file; once more from the start" in line for line in said)
    place.path.unlink()
    place.part().write_bytes(CONTENT[:51200])  # nobody knows of what
    fetch(place.path, place.at(""), MD5, silent)
    assert place.address.ranges[-1] is None
    assert place.files() == ["a.zip"]


def test_a_whole_part_is_only_checked_and_renamed(place: Place) -> None:
    fails(place, place.at("truncated"), "51200 of 102400")
    place.part().write_bytes(CONTENT)
    asked = len(place.address.requests)
    fetch(place.path, place.at("truncated"), MD5, silent)
    assert place.path.read_bytes() == CONTENT
    assert len(place.address.requests) == asked


def test_progress(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.data.fetch.partial_file.PROGRESS_EVERY_S", 0.05)
    said: list[str] = []
    fetch(place.path, place.at("slow"), MD5, said.append)
    shares = [int(found[1]) for line in said if (found := re.fullmatch(r"a.zip: (\d+) % of 0.1 MB, 0:00 left", line))]
    assert len(shares) >= 3
    assert shares == sorted(set(shares))


SCRIPT = """
import signal, sys, pathlib
from metarun.data.fetch.download import fetch
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by whatever a shell starts in the background
fetch(pathlib.Path(sys.argv[1]), [sys.argv[2]], sys.argv[3], lambda line: print(line, flush=True))
"""


def process(place: Place, way: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, str(place.path), place.at(way)[0], MD5]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_one_download(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.server.PAUSE_S", 0.1)
    both = [process(place, "slow") for _ in range(2)]
    said = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert place.path.read_bytes() == CONTENT
    assert len(place.address.requests) == 1
    assert sum("another process downloads it; waiting" in text for text in said) == 1


def test_what_ctrl_c_leaves_is_continued(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.server.PAUSE_S", 0.5)
    one = process(place, "slow")
    deadline = time.monotonic() + 30
    while not (place.part().exists() and place.part().stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    one.send_signal(signal.SIGINT)
    one.communicate(timeout=30)
    came = place.part().stat().st_size
    assert 0 < came < len(CONTENT)
    monkeypatch.setattr("support.server.PAUSE_S", 0.0)
    fetch(place.path, place.at("slow"), MD5, silent)
    assert place.address.ranges == [None, f"bytes={came}-"]
    assert place.path.read_bytes() == CONTENT


def test_too_little_room_is_said_before(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.path.parents[2])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    folder = re.escape(str(place.path.parent))
    fails(place, place.at(""), f"no room in {folder}, 0.1 MB are needed and 1000 bytes are free; make room")
    assert place.files() == []


@pytest.mark.parametrize("resumed", [False, True])
def test_a_disk_that_runs_full(place: Place, resumed: bool) -> None:
    if resumed:
        fails(place, place.at("truncated"), "51200 of 102400")
    asked = len(place.address.requests)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # a write beyond it fails like one to a full disk
    try:
        fails(place, place.at("", "slow"), "no room in .*, 0.1 MB are needed; make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert place.files() == []
    assert len(place.address.requests) == asked + 1  # another mirror would not help


def test_a_folder_that_cannot_be_written(place: Place) -> None:
    place.path.parents[1].mkdir()
    place.path.parent.write_text("a file, so that no folder can be made")
    fails(place, place.at(""), "set cannot be written .*; set data.root")
    place.path.parent.unlink()
    long = place._replace(path=place.path.with_name("a" * 250 + ".zip"))  # no room for .part behind it
    fails(long, place.at(""), r"set cannot be written \(File name too long\)")
    assert place.files() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(place: Place) -> None:
    place.path.parent.mkdir(parents=True)
    place.path.parent.chmod(0o555)
    fails(place, place.at(""), r"set cannot be written \(Permission denied\)")
    assert place.files() == []


def test_without_locks(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file/cache"))
    said: list[str] = []
    fetch(place.path, place.at(""), MD5, said.append)
    assert place.path.read_bytes() == CONTENT
    assert place.files() == ["a.zip"]
    assert "downloaded without a lock" in said[0]
    place.path.unlink()
    fails(place, place.at("truncated"), "51200 of 102400")
    assert place.files() == []
