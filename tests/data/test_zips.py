"""Zip archives: names that lead outside, damage, and a digest of what is in them however it is packed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from metarun.data.read.zip_archive import content_digest, open_zip, zip_bytes, zip_names
from metarun.data.store.pool import DataError

FILES = {"top/a/1.png": b"one", "top/a/2.png": b"two", "top/b/1.png": b"three"}


def written(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_STORED, year: int = 2001) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, inside in files.items():
            file.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), inside, packing)
    return path


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.png", "top/../../a.png", "top/..", "C:/a.png", "c:a.png", "top\\a.png", "..\\a.png"]
)
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.zip", {"top/1.png": b"", name: b""})
    with pytest.raises(DataError, match=r"a.zip: the name .* leads out of the archive"), open_zip(path):
        pass
    with pytest.raises(DataError, match="leads out of the archive"):
        content_digest(path)


def test_names_that_only_look_so(tmp_path: Path) -> None:
    names = ["top/a..b.png", "top/...", "top/.hidden/1.png", "top/a:b.png"]
    with open_zip(written(tmp_path / "a.zip", dict.fromkeys(names, b""))) as file:
        assert zip_names(file) == sorted(names)


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    expected = content_digest(written(tmp_path / "a.zip", FILES))
    inner = {name.removeprefix("top/"): inside for name, inside in FILES.items()}
    litter = {"__MACOSX/top/._1.png": b"x", "top/.DS_Store": b"x", "top/": b"", "top/a/": b"", "top/b/Thumbs.db": b"x"}
    same = [
        written(tmp_path / "1.zip", FILES, zipfile.ZIP_DEFLATED, 2020),
        written(tmp_path / "2.zip", dict(reversed(FILES.items())), zipfile.ZIP_BZIP2),
        written(tmp_path / "3.zip", inner, zipfile.ZIP_LZMA),
        written(tmp_path / "4.zip", {f"other/name/{name}": inside for name, inside in inner.items()}),
        written(tmp_path / "5.zip", {**litter, **FILES}),
    ]
    assert {content_digest(path) for path in same} == {expected}
    swapped = {"top/a/1.png": b"two", "top/a/2.png": b"one", "top/b/1.png": b"three"}
    other = [
        {**FILES, "top/a/1.png": b"One"},
        {**FILES, "top/a/3.png": b"one"},
        {name: FILES[name] for name in list(FILES)[:2]},
        {name.replace("b/", "c/"): inside for name, inside in FILES.items()},
        swapped,
        {},
    ]
    digests = [content_digest(written(tmp_path / f"other{number}.zip", files)) for number, files in enumerate(other)]
    assert len({expected, *digests}) == 1 + len(other)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.zip", {"top/1.png": b"content" * 50, "top/2.png": b"x"}).read_bytes()
    path = tmp_path / "b.zip"
    for part in (b"", whole[:20], whole[: len(whole) // 2], whole[:-30], b"PK\x03\x04 and nothing"):
        path.write_bytes(part)
        with (
            pytest.raises(DataError, match=r"b.zip is no whole zip archive \(.+\); get the file again"),
            open_zip(path),
        ):
            pass
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        try:
            with open_zip(path) as file:
                found = [zip_bytes(file, name) for name in zip_names(file)]
            assert found[:1] in ([b"content" * 50], [b"x"], [])  # a date, a name; never other bytes
        except DataError:
            continue
    path.write_bytes(b"  <HTML>")
    with pytest.raises(DataError, match="it is a web page"), open_zip(path):
        pass
    with pytest.raises(DataError, match=r"none.zip is no whole zip archive \(.*No such file"):
        content_digest(tmp_path / "none.zip")


def test_a_file_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("top/a/1.png", b"other")
    with pytest.raises(DataError, match=r"has top/a/1.png twice"):
        content_digest(path)
