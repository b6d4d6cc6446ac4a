"""A pool refuses classes in two splits; the cache gives back what was made, whatever happens to its files."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from metarun.data.pool import cache_root, cached, make_pool

ARRAY = np.arange(5000, dtype=np.uint8).reshape(50, 100)


def silent(_: str) -> None:
    pass


def test_pool_holds_disjoint_classes_only() -> None:
    images = np.zeros((3, 2, 1, 4, 4), dtype=np.uint8)
    pool = make_pool(images, ("a", "b", "c"), {"train": (0, 2), "test": (1,)})
    assert pool.splits["train"] == (0, 2)
    with pytest.raises(AssertionError, match="3 classes in splits, 2 of them different"):
        make_pool(images, ("a", "b", "c"), {"train": (0, 1), "test": (1,)})
    with pytest.raises(AssertionError, match="of 3"):
        make_pool(images, ("a", "b", "c"), {"train": (0, 3)})
    with pytest.raises(AssertionError, match="2 names, 3 classes"):
        make_pool(images, ("a", "b"), {"train": (0,)})
    with pytest.raises(AssertionError, match="not uint8"):
        make_pool(images.astype(np.float32), ("a", "b", "c"), {"train": (0,)})


def test_cache_makes_once_and_maps_read_only(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> NDArray[np.uint8]:
        made.append(1)
        return ARRAY

    for _ in range(3):
        found = cached(tmp_path / "new" / "folder", "key", make, silent)
        assert isinstance(found, np.memmap)
        assert np.array_equal(found, ARRAY)
        assert not found.flags.writeable
    assert len(made) == 1
    assert sorted(path.suffix for path in (tmp_path / "new" / "folder").iterdir()) in ([".npy"], [".lock", ".npy"])


@pytest.mark.parametrize("place", [0, 9, 60, 127, 128, 1500, -5, -4, -1])
def test_any_flipped_byte_is_noticed_and_mended(tmp_path: Path, place: int) -> None:
    cached(tmp_path, "key", lambda: ARRAY, silent)
    path = tmp_path / "key.npy"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
    assert np.array_equal(cached(tmp_path, "key", lambda: ARRAY, silent), ARRAY)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 3, 4, 64, 200, 5000])
def test_a_file_cut_short_is_noticed_and_mended(tmp_path: Path, length: int) -> None:
    cached(tmp_path, "key", lambda: ARRAY, silent)
    path = tmp_path / "key.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert np.array_equal(cached(tmp_path, "key", lambda: ARRAY, silent), ARRAY)
    assert path.read_bytes() == whole


def test_a_failure_to_make_leaves_nothing_behind_and_is_not_taken_for_a_failure_to_keep(tmp_path: Path) -> None:
    def fail() -> NDArray[np.uint8]:
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        cached(tmp_path, "key", fail, silent)
    assert not list(tmp_path.glob("*.npy")) + list(tmp_path.glob("*.part"))
    assert np.array_equal(cached(tmp_path, "key", lambda: ARRAY, silent), ARRAY)


def test_without_a_folder_the_array_is_kept_in_memory_and_this_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, so no folder can be made below it")
    said: list[str] = []
    found = cached(tmp_path / "file" / "cache", "key", lambda: ARRAY, said.append)
    assert np.array_equal(found, ARRAY)
    assert not found.flags.writeable
    assert len(said) == 1
    assert "in memory" in said[0]


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    said: list[str] = []
    assert np.array_equal(cached(tmp_path, "key", lambda: ARRAY, said.append), ARRAY)
    assert len(said) == 1
    assert "No space left" in said[0]
    assert not list(tmp_path.glob("*.part"))


def _racer(folder: Path, count: Path, start: float) -> None:
    def make() -> NDArray[np.uint8]:
        with count.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return ARRAY

    time.sleep(max(0.0, start - time.time()))
    assert np.array_equal(cached(folder, "key", make, silent), ARRAY)


def test_processes_at_once_make_it_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    spawn = multiprocessing.get_context("spawn")
    racers = [spawn.Process(target=_racer, args=(tmp_path / "cache", count, time.time() + 1.5)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert count.read_text() == "made\n"


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("METARUN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache/metarun"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/metarun"
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
