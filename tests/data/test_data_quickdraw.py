"""Quick, Draw! from 345 small files in the published format, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from metarun.config.convert import dataclass_from
from metarun.data.sources.quickdraw import Quickdraw
from metarun.data.splits.class_list import class_list
from metarun.data.store.pool import DataError
from metarun.errors import ConfigError
from support.makers import quickdraw
from support.makers.quickdraw import DRAWINGS, drawing
from support.server import serving

CONF = Path(__file__).parents[2] / "conf/data/quickdraw.yaml"


def silent(_: str) -> None:
    pass


def source(root: Path | None, **changed: Any) -> Quickdraw:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF))
    return dataclass_from(Quickdraw, {**values, "root": root and str(root), **changed}, "data")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    quickdraw.make(tmp_path / "data/quickdraw")
    return tmp_path / "data"


@pytest.mark.parametrize("per_class", [1, 3, None])
def test_every_drawing_is_where_its_file_says(per_class: int | None, root: Path) -> None:
    data = source(root, per_class=per_class, mirrors=[])
    pool = data.load(silent)
    count = per_class or DRAWINGS
    assert pool.items.shape == (345 * count, 1, 28, 28)
    assert pool.names == tuple(sorted(name for names in class_list("quickdraw").values() for name in names))
    for number in range(345):
        expected = np.stack([drawing(number, each).reshape(1, 28, 28) for each in range(count)])
        assert np.array_equal(pool.items_of(number), expected)
    assert {split: len(classes) for split, classes in pool.splits.items()} == data.counts()
    for file in (root / "quickdraw").iterdir():
        file.unlink()
    assert np.array_equal(source(root, per_class=per_class, mirrors=[]).load(silent).items, pool.items)


def test_published_classes() -> None:
    data, names = source(None), class_list("quickdraw")
    assert data.counts() == {"train": 241, "val": 52, "test": 52}
    flat = [name for part in names.values() for name in part]
    assert len(flat) == len(set(flat)) == 345
    files = data.editions()[0].files
    assert len(files) == 345
    base = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap"
    assert next(file.urls for file in files if file.path == "The Eiffel Tower.npy") == (
        f"{base}/The%20Eiffel%20Tower.npy",
    )
    for field, value in (("per_class", 0), ("size", 0)):
        with pytest.raises(ConfigError, match=f"data.{field}={value}: "):
            source(None, **{field: value})


def test_fetched(root: Path, tmp_path: Path) -> None:
    with serving(root / "quickdraw") as address:
        pool = source(tmp_path / "other", per_class=2, mirrors=[str(address)]).load(silent)
        assert pool.items[:, 0, 0, 2].tolist() == [1, 11] * 345
        assert len(list((tmp_path / "other/quickdraw").glob("*.npy"))) == 345


def test_another_size(root: Path) -> None:
    pool = source(root, per_class=2, size=14, resize="nearest", mirrors=[]).load(silent)
    assert pool.items.shape == (690, 1, 14, 14)
    assert np.array_equal(pool.items[0, 0], drawing(0, 0).reshape(28, 28)[1::2, 1::2])


def test_drawings_that_coincide(root: Path) -> None:
    file = root / "quickdraw/bear.npy"
    drawings = np.load(file)
    drawings[1] = np.load(root / "quickdraw/angel.npy")[0]
    np.save(file, drawings)
    said: list[str] = []
    source(root, per_class=3, mirrors=[]).load(said.append)
    assert any("1 items are the same in classes of two splits" in line for line in said)
    with pytest.raises(DataError, match=r"angel \(test\) and bear \(.*data.duplicates=warn"):
        source(root, per_class=3, mirrors=[], duplicates="refuse").load(silent)


def test_damaged_files(root: Path) -> None:
    file = root / "quickdraw/bear.npy"
    whole = file.read_bytes()
    with pytest.raises(DataError, match=r"npy has 5 drawings, not 1000; set data.per_class lower"):
        source(root, mirrors=[]).load(silent)
    pickled = root / "p.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for damaged in (whole[: len(whole) // 2], b"<html>no</html>", b"", pickled.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bear.npy cannot be read as drawings"):
            source(root, per_class=2, mirrors=[]).load(silent)
    for other in (np.zeros((5, 28, 28), np.uint8), np.zeros((5, 784), np.float32)):
        np.save(file, other)
        with pytest.raises(DataError, match=r"bear.npy is not of 8-bit drawings of 28 x 28 pixels"):
            source(root, per_class=2, mirrors=[]).load(silent)
    np.save(file, np.zeros((0, 784), np.uint8))
    with pytest.raises(DataError, match=r"bear.npy (has 0 drawings, not 1|cannot be read)"):
        source(root, per_class=None, mirrors=[]).load(silent)
    file.unlink()
    with pytest.raises(DataError, match=r"get .*bear.npy.* from https://github.com/googlecreativelab"):
        source(root, per_class=2, mirrors=[]).load(silent)
    file.write_bytes(whole)
    assert len(source(root, per_class=2, mirrors=[]).load(silent).items) == 690
