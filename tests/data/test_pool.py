"""A pool refuses classes in two splits; a packed file gives back what was packed, whatever happens to it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metarun.data.store import pack as packing
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Pack, is_whole, packed
from metarun.data.store.pool import DataError, cache_root, make_pool

NAMES = ("a", "b", "c")
COUNTS = (2, 3, 5)
ITEMS = np.arange(10 * 16, dtype=np.uint8).reshape(10, 1, 4, 4)


def silent(_: str) -> None:
    pass


def contents(items: NDArray[Any] = ITEMS) -> Contents:
    return Contents(NAMES, COUNTS, items.shape[1:], iter(items), ("g", "g", "h"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def check(pack: Pack) -> None:
    assert np.array_equal(pack.items, ITEMS)
    assert (pack.names, pack.counts, pack.groups, pack.duplicates) == (NAMES, COUNTS, ("g", "g", "h"), ())
    assert not pack.items.flags.writeable


def test_pool_holds_disjoint_classes_only() -> None:
    pool = make_pool(ITEMS, COUNTS, NAMES, {"train": (0, 2), "test": (1,)})
    assert pool.splits["train"] == (0, 2)
    assert np.array_equal(pool.items_of(1), ITEMS[2:5])
    with pytest.raises(AssertionError, match="3 classes in splits, 2 of them different"):
        make_pool(ITEMS, COUNTS, NAMES, {"train": (0, 1), "test": (1,)})
    with pytest.raises(AssertionError, match="of 3"):
        make_pool(ITEMS, COUNTS, NAMES, {"train": (0, 3)})
    with pytest.raises(AssertionError, match="2 names, 3 classes"):
        make_pool(ITEMS, COUNTS, NAMES[:2], {"train": (0,)})
    with pytest.raises(AssertionError, match="not uint8 or float32"):
        make_pool(ITEMS.astype(np.float64), COUNTS, NAMES, {"train": (0,)})
    with pytest.raises(AssertionError, match="9 items counted, 10 there"):
        make_pool(ITEMS, (2, 3, 4), NAMES, {"train": (0,)})


def test_packed_once_and_mapped_read_only(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Contents:
        made.append(1)
        return contents()

    for _ in range(3):
        pack = packed("set-1", make, silent, tmp_path / "new" / "folder")
        assert isinstance(pack.items, np.memmap)
        check(pack)
    assert len(made) == 1
    assert is_whole(tmp_path / "new/folder/set-1.npy")
    left = {path.suffix for path in (tmp_path / "new/folder").iterdir()}
    assert left - {".lock"} == {".npy", ".json"}


def test_features_and_blocks_of_several_items(folder: Path) -> None:
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    blocks = iter([rows[:7], rows[7], rows[8:]])
    pack = packed("features-1", lambda: Contents(NAMES, COUNTS, (4,), blocks), silent, folder)
    assert pack.items.dtype == np.float32
    assert np.array_equal(pack.items, rows)


@pytest.mark.parametrize("ending", [".npy", ".json"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999])
def test_any_flipped_byte_is_noticed_and_mended(folder: Path, ending: str, share: float) -> None:
    packed("key-1", contents, silent, folder)
    path = folder / f"key-1{ending}"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(share * len(whole))] ^= 0x10
    path.write_bytes(damaged)
    check(packed("key-1", contents, silent, folder))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("ending", [".npy", ".json"])
@pytest.mark.parametrize("length", [0, 3, 4, 64, 200])
def test_a_file_cut_short_is_noticed_and_mended(folder: Path, ending: str, length: int) -> None:
    packed("key-1", contents, silent, folder)
    path = folder / f"key-1{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    check(packed("key-1", contents, silent, folder))
    assert path.read_bytes() == whole


def test_a_large_file_is_opened_without_reading_it_and_its_length_is_still_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed("key-1", contents, silent, folder)
    monkeypatch.setattr(packing, "VERIFIED_BYTES", 0)
    monkeypatch.setattr(packing, "is_whole", lambda _: pytest.fail("was read"))
    check(packed("key-1", lambda: pytest.fail("was packed anew"), silent, folder))
    path = folder / "key-1.npy"
    path.write_bytes(path.read_bytes()[:-20] + path.read_bytes()[-4:])
    made: list[int] = []

    def make() -> Contents:
        made.append(1)
        return contents()

    check(packed("key-1", make, silent, folder))
    assert made == [1]


def test_a_failure_to_make_leaves_nothing_behind(folder: Path) -> None:
    def fail() -> Contents:
        raise DataError("no network")

    def half() -> Contents:
        def rows() -> Any:
            yield ITEMS[0]
            raise DataError("second picture is broken")

        return Contents(NAMES, COUNTS, (1, 4, 4), rows())

    for make, words in ((fail, "no network"), (half, "broken")):
        with pytest.raises(DataError, match=words):
            packed("key-1", make, silent, folder)
        assert not [path for path in folder.iterdir() if path.suffix != ".lock"]
    check(packed("key-1", contents, silent, folder))


def test_too_few_or_too_many_items_are_a_mistake_of_the_source(folder: Path) -> None:
    for items in (ITEMS[:9], np.concatenate([ITEMS, ITEMS[:1]])):
        with pytest.raises((AssertionError, IndexError)):
            packed("key-1", lambda items=items: contents(items), silent, folder)  # type: ignore[misc]


def test_without_a_folder_it_is_kept_in_memory_and_this_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, so no folder can be made below it")
    said: list[str] = []
    check(packed("key-1", contents, said.append, tmp_path / "file" / "cache"))
    assert len(said) == 1
    assert "in memory" in said[0]


def refuse_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise packing._CannotWrite(OSError(28, "No space left on device"))

    monkeypatch.setattr(packing, "_append", full)


def nothing_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))


@pytest.mark.parametrize("spoil", [refuse_to_write, nothing_free])
def test_a_full_disk_does_not_end_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    spoil(monkeypatch)
    said: list[str] = []
    check(packed("key-1", contents, said.append, folder))
    assert len(said) == 1
    assert "in memory" in said[0]
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_what_does_not_fit_into_memory_either_is_an_error_that_says_where_to_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_free(monkeypatch)
    monkeypatch.setattr(packing, "IN_MEMORY_BYTES", 100)
    with pytest.raises(DataError, match=r"0\.0 GB free.*set METARUN_CACHE to a folder with room"):
        packed("key-1", contents, silent, folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o500)
    said: list[str] = []
    check(packed("key-1", contents, said.append, folder))
    assert "in memory" in said[0]
    folder.chmod(0o700)


def _racer(folder: Path, count: Path, start: float) -> None:
    def make() -> Contents:
        with count.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return contents()

    time.sleep(max(0.0, start - time.time()))
    check(packed("key-1", make, silent, folder))


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


def twins(folder: Path) -> Pack:
    """Item 3 of b is item 0 of a; an item of c lies there twice, which is nobody's business."""
    items = ITEMS.copy()
    items[3], items[9] = items[0], items[8]
    return packed("twins-1", lambda: contents(items), silent, folder)


def test_an_item_in_two_splits_is_refused_or_told(folder: Path) -> None:
    for _ in range(2):  # packed, then read back
        pack = twins(folder)
        assert [(pair.first, pair.second, pair.row) for pair in pack.duplicates] == [(0, 1, 3)]
    with pytest.raises(DataError, match=r"1 items are the same .* a \(train\) and b \(test\); data.duplicates=warn"):
        pack.pool({"train": (0, 2), "test": (1,)}, "refuse", silent)
    said: list[str] = []
    pack.pool({"train": (0, 2), "test": (1,)}, "warn", said.append)
    assert "a (train) and b (test)" in said[0]
    pack.pool({"train": (0, 1), "test": (2,)}, "refuse", pytest.fail)
    pack.pool({"train": (0,), "test": (2,)}, "refuse", pytest.fail)


def test_three_classes_with_one_item(folder: Path) -> None:
    """Also the pair that does not hold the first of them."""
    items = ITEMS.copy()
    items[3] = items[6] = items[0]
    pack = packed("twins-1", lambda: contents(items), silent, folder)
    with pytest.raises(DataError, match=r"b \(train\) and c \(test\)"):
        pack.pool({"train": (1,), "test": (2,)}, "refuse", silent)


def test_a_class_in_two_splits_is_refused(folder: Path) -> None:
    pack = packed("key-1", contents, silent, folder)
    with pytest.raises(DataError, match=r"class b is in the train and in the val split"):
        pack.pool({"train": (0, 1), "val": (1,), "test": (2,)}, "warn", silent)
    with pytest.raises(DataError, match=r"list\.json names 1 classes that the data does not have"):
        pack.numbers({"train": ["a", "d"]}, "list.json")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("METARUN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache/metarun"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/metarun"
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
