"""The user's own features from .npz, .npy and Parquet: every row where its label says; groups; damage; nothing run."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from metarun.config.convert import dataclass_from
from metarun.data.sources.arrays import Arrays
from metarun.data.splits.split_file import split_text
from metarun.data.store.pool import DataError, Pool
from metarun.errors import ConfigError
from metarun.types import Split

pyarrow: Any = pytest.importorskip("pyarrow")
parquet: Any = importlib.import_module("pyarrow.parquet")

ROOT = Path(__file__).parents[2]
CLASSES, COLUMNS = 12, 5
RNG = np.random.default_rng(3)
COUNTS = [3 + number % 4 for number in range(CLASSES)]
Y = RNG.permutation(np.repeat(np.arange(CLASSES), COUNTS))
X = RNG.normal(size=(len(Y), COLUMNS)).astype(np.float32)
WORDS = np.array([f"kind {label:02d}" for label in Y])
GROUPS = np.array([f"user{label // 3}" for label in Y])  # 4 of 3 labels each


def silent(_: str) -> None:
    pass


def arrays(path: Path | None, **changed: Any) -> Arrays:
    values: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/data/arrays.yaml"))
    return dataclass_from(Arrays, {**values, "path": path and str(path), **changed}, "data")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def npz(path: Path, **parts: Any) -> Path:
    np.savez(path, **{"x": X, "y": Y, **parts})
    return path


def table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def singles(x: NDArray[Any] = X) -> dict[str, NDArray[Any]]:
    return {f"f{place}": x[:, place] for place in range(x.shape[1])}


def named(pool: Pool) -> dict[Split, list[str]]:
    return {part: [pool.names[number] for number in numbers] for part, numbers in pool.splits.items()}


def holds(pool: Pool, labels: NDArray[Any], x: NDArray[Any] = X) -> None:
    assert pool.items.dtype == np.float32
    assert len(pool.items) == len(x)
    for number, name in enumerate(pool.names):
        assert np.array_equal(pool.items_of(number), x[labels == name].astype(np.float32)), name


def refused(source: Arrays, said: str) -> None:
    cache = Path(os.environ["METARUN_CACHE"])
    before = {path for path in cache.glob("*") if path.suffix != ".lock"}
    with pytest.raises(DataError, match=said) as caught:
        source.load(silent)
    assert "\n" not in str(caught.value)
    assert {path for path in cache.glob("*") if path.suffix != ".lock"} == before


def test_every_row_is_where_its_label_says(tmp_path: Path) -> None:
    pool = arrays(npz(tmp_path / "a.npz")).load(silent)
    assert pool.names == tuple(map(str, range(CLASSES)))
    assert set(pool.groups) == {""}
    assert np.diff(pool.bounds).tolist() == COUNTS
    holds(pool, Y.astype(str))
    assert {part: len(names) for part, names in named(pool).items()} == {"train": 8, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (Y.astype(np.uint8), Y.astype(str)),
        (Y - 6, (Y - 6).astype(str)),
        (Y.astype(float), Y.astype(str)),
        (Y[:, None], Y.astype(str)),
        (WORDS, WORDS),
        (np.char.encode(WORDS), WORDS),
    ],
)
def test_labels_of_many_types(tmp_path: Path, y: NDArray[Any], names: NDArray[Any]) -> None:
    pool = arrays(npz(tmp_path / "a.NPZ.npz", y=y)).load(silent)
    assert sorted(pool.names) == sorted(set(names.tolist()))
    holds(pool, names)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint8, np.int64, np.bool_, ">f4"])
def test_features_of_many_types(tmp_path: Path, kind: Any) -> None:
    x = (X * 40).astype(np.int8).astype(kind)
    holds(arrays(npz(tmp_path / "a.npz", x=x), duplicates="warn").load(silent), Y.astype(str), x)
    np.save(tmp_path / "b.npy", np.asfortranarray(x))
    np.save(tmp_path / "y.npy", Y)
    source = arrays(tmp_path / "b.npy", labels=str(tmp_path / "y.npy"), duplicates="warn")
    holds(source.load(silent), Y.astype(str), x)


def test_npz_by_other_names(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", features=X, labels=WORDS, user=GROUPS, x=X * 0)
    pool = arrays(tmp_path / "a.npz", x="features", y="labels", group="user").load(silent)
    holds(pool, np.char.add(np.char.add(GROUPS, "/"), WORDS))
    refused(arrays(tmp_path / "a.npz"), "data.y=y: .*a.npz has no such array; it has features, labels, user, x")
    refused(arrays(tmp_path / "a.npz", y="labels", group="g"), "data.group=g: .*has no such array")


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", WORDS)
    np.save(tmp_path / "g.npy", GROUPS)
    source = arrays(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), group=str(tmp_path / "g.npy"))
    holds(source.load(silent), np.char.add(np.char.add(GROUPS, "/"), WORDS))
    for column in (0, 2, -1):
        both = np.insert(X, column if column >= 0 else COLUMNS, Y, axis=1)
        np.save(tmp_path / f"both{column}.npy", both)
        holds(arrays(tmp_path / f"both{column}.npy", label_column=column).load(silent), Y.astype(str))


def test_npy_needs_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", WORDS[1:])
    labels = str(tmp_path / "y.npy")
    refused(arrays(tmp_path / "x.npy"), "has features alone: name a file of labels")
    refused(arrays(tmp_path / "x.npy", labels=labels, label_column=1), "and not both")
    refused(arrays(tmp_path / "x.npy", label_column=5), "label_column=5: .*x.npy has shape ")
    refused(arrays(tmp_path / "x.npy", label_column=-1), r"label -?\d.\d+ in row 0; labels are whole numbers or texts")
    refused(arrays(tmp_path / "x.npy", labels=labels), r"labels of shape \[\d+\] for \d+ rows; need one label a row")
    refused(arrays(tmp_path / "x.npy", labels=str(tmp_path / "no.npy")), "no.npy cannot be read .No such file")


def test_parquet_of_single_columns(tmp_path: Path) -> None:
    mixed = {**singles(), "f1": X[:, 1].astype(np.float64), "id": [f"row{row}" for row in range(len(Y))]}
    path = table(tmp_path / "a.parquet", when=np.zeros(len(Y), "datetime64[s]"), y=WORDS, user=GROUPS, **mixed)
    said: list[str] = []
    holds(arrays(path, columns=[*singles()]).load(said.append), WORDS)
    assert said == []
    holds(arrays(path).load(said.append), WORDS)
    assert said == [f"{path}: columns that are not numbers were left out: when, user, id"]
    holds(arrays(path, columns=["f3", "f0"]).load(silent), WORDS, X[:, [3, 0]])
    holds(arrays(path, group="user").load(silent), np.char.add(np.char.add(GROUPS, "/"), WORDS))
    refused(arrays(path, columns=["f0", "id"]), r"data.columns: .* no feature can be made of id \(string\)")
    refused(arrays(path, columns=["f9"]), "data.columns=f9: .* has 0 columns of this name; it has when, y, user")
    refused(arrays(path, y="label"), "data.y=label: .* has 0 columns of this name")


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "half"])
def test_parquet_of_lists(tmp_path: Path, kind: str) -> None:
    inner = pyarrow.float16() if kind == "half" else pyarrow.float32()
    x = X.astype(np.float16) if kind == "half" else X
    makers = {"large_list": pyarrow.large_list, "fixed": lambda inner: pyarrow.list_(inner, COLUMNS)}
    column = pyarrow.array(list(x), makers.get(kind, pyarrow.list_)(inner))
    whole = pyarrow.table({"y": Y, "e": column, "text": WORDS})
    parquet.write_table(whole, tmp_path / "a.parquet", row_group_size=7)
    holds(arrays(tmp_path / "a.parquet").load(silent), Y.astype(str), x)
    holds(arrays(tmp_path / "a.parquet", y="text", columns=["e"]).load(silent), WORDS, x)
    parquet.write_table(whole.append_column("size", pyarrow.array(Y)), tmp_path / "b.parquet")
    refused(arrays(tmp_path / "b.parquet"), r"columns of lists \(e\) and 1 of numbers; name the one")
    refused(arrays(tmp_path / "b.parquet", columns=["size", "e"]), "name the one of lists, or those of numbers")
    holds(arrays(tmp_path / "b.parquet", columns=["e"]).load(silent), Y.astype(str), x)


def test_parquet_kinds(tmp_path: Path) -> None:
    x = (X * 40).astype(np.int64)
    columns = {
        "i": pyarrow.array(x[:, 0]),
        "u": pyarrow.array(abs(x[:, 1]), pyarrow.uint8()),
        "b": pyarrow.array(x[:, 2] > 0),
        "d": pyarrow.array(x[:, 3]).cast(pyarrow.decimal128(21, 2)),
        "h": pyarrow.array(x[:, 4].astype(np.float16)),
    }
    expected = np.stack([x[:, 0], abs(x[:, 1]), x[:, 2] > 0, x[:, 3], x[:, 4]], axis=1)
    for name, y in {
        "category": pyarrow.array(WORDS).dictionary_encode(),
        "large": pyarrow.array(WORDS.tolist(), pyarrow.large_string()),
        "bytes": pyarrow.array([word.encode() for word in WORDS.tolist()]),
    }.items():
        path = table(tmp_path / f"{name}.parquet", y=y, **columns)
        holds(arrays(path, duplicates="warn").load(silent), WORDS, expected)


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    holed = [*WORDS.tolist()[:4], None, *WORDS.tolist()[5:]]
    refused(arrays(table(tmp_path / "a.parquet", y=holed, **singles())), "y is empty in row 4, counted from 0")
    ragged = [*X.tolist()[:6], [1.0], *X.tolist()[7:]]
    refused(arrays(table(tmp_path / "b.parquet", y=Y, e=ragged)), "e has 1 numbers in row 6 and 5 in row 0")
    refused(
        arrays(table(tmp_path / "c.parquet", y=Y, z=WORDS)), r"has no column of numbers .* y \(int64\), z \(string\)"
    )
    refused(arrays(table(tmp_path / "d.parquet", y=list(X), **singles())), "y is of type list<.*labels are whole")
    empty = [1.0, None, *X[2:, 0].tolist()]
    refused(arrays(table(tmp_path / "e.parquet", y=Y, mass=empty)), r"row 1, column 0 \(mass\) is nan")
    missing = [*X.tolist()[:6], None, *X.tolist()[7:]]
    refused(arrays(table(tmp_path / "f.parquet", y=Y, e=missing)), "e has 0 numbers in row 6")
    inner = [*X.tolist()[:6], [1.0, 2.0, None, 4.0, 5.0], *X.tolist()[7:]]
    refused(arrays(table(tmp_path / "g.parquet", y=Y, e=inner)), r"row 6, column 2 \(e\[2\]\) is nan")
    refused(arrays(table(tmp_path / "h.parquet", y=np.zeros(0, int), a=np.zeros(0))), r"features of shape \[0, 1\]")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet", y=Y, **singles())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(arrays(path), r"needs pyarrow: pip install metarun\[parquet\]")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none(tmp_path: Path, value: float) -> None:
    x = X.astype(np.float64)
    x[7, 3] = value
    refused(arrays(npz(tmp_path / "a.npz", x=x)), rf"row 7, column 3 is {value}, counted from 0".replace("+", r"\+"))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"x": X[:, 0]}, r"features of shape \[\d+\]; need \[rows, columns\]"),
        ({"x": X[:, :, None]}, r"features of shape \[\d+, 5, 1\]"),
        ({"x": X[:0], "y": Y[:0]}, r"features of shape \[0, 5\]"),
        ({"x": X.astype(complex)}, "features of type complex128"),
        ({"x": WORDS[:, None]}, "features of type <U7; need numbers"),
        ({"y": Y[1:]}, "labels of shape"),
        ({"y": np.eye(CLASSES)[Y]}, r"labels of shape \[\d+, 12\]"),
        ({"y": Y + 0.5}, r"label \d+.5 in row 0"),
        ({"y": np.where(np.arange(len(Y)) == 2, np.nan, Y)}, "label nan in row 2"),
        ({"y": Y.astype("datetime64[s]")}, "labels of type datetime64"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, parts: dict[str, Any], said: str) -> None:
    refused(arrays(npz(tmp_path / "a.npz", **parts)), said)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("sprung").write_text, ("it was run",))


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    trap = np.array([Trap()] * len(Y), dtype=object)
    words = "it holds Python objects, which are never loaded; save texts by y.astype"
    refused(arrays(npz(tmp_path / "a.npz", y=trap)), f"y cannot be read .{words}")
    np.save(tmp_path / "b.npy", trap, allow_pickle=True)
    refused(arrays(tmp_path / "b.npy", label_column=0), f"b.npy is no readable .npy file .{words}")
    for name in ("c.npz", "c.npy", "c.parquet"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refused(arrays(tmp_path / name, label_column=0 if name == "c.npy" else None), "is no readable")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("form", ["npz", "packed.npz", "npy", "parquet"])
def test_damage(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    changed = {"label_column": -1} if form == "npy" else {}
    file = io.BytesIO()
    if form == "parquet":
        parquet.write_table(pyarrow.table({"y": Y, **singles()}), file, write_page_checksum=True)
    elif form == "npy":
        np.save(file, np.column_stack([X, Y]))
    else:
        (np.savez if form == "npz" else np.savez_compressed)(file, x=X, y=Y)
    whole = file.getvalue()
    for length in (0, 1, 5, 20, 100, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        refused(arrays(path, **changed), path.name)
    draw = np.random.default_rng(5)
    caught = 0
    for place in draw.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged)
        os.utime(path, ns=(int(place), int(place)))
        with contextlib.suppress(DataError):
            arrays(path, duplicates="warn", **changed).load(silent)
            caught -= 1
        caught += 1
    assert caught > {"npz": 100, "packed.npz": 100, "npy": 1, "parquet": 20}[form]  # a .npy has no checksum


def test_wrong_suffixes_and_options(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y")
    refused(arrays(tmp_path / "a.csv"), "need a file .npz, .npy or .parquet; data=folder reads pictures")
    (tmp_path / "dir.npz").mkdir()
    refused(arrays(tmp_path / "dir.npz"), "need a file .npz")
    path = npz(tmp_path / "a.npz")
    refused(arrays(path, label_column=-1), "data.label_column=-1: has no meaning for a .npz file; leave it out")
    refused(arrays(path, labels="y.npy"), "data.labels=y.npy: has no meaning for a .npz file")
    refused(arrays(path, columns=["a"]), "data.columns=.*: has no meaning for a .npz file")
    path.rename(tmp_path / "b.npy")
    refused(arrays(tmp_path / "b.npy", label_column=0), "b.npy is a .npz file; name it so")
    np.save(tmp_path / "c.npy", X)
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    refused(arrays(tmp_path / "c.npz"), "c.npz is no readable .npz file")
    refused(arrays(None), "data.path=null: say where your features are")
    refused(arrays(tmp_path / "no.npz"), "there is no .*no.npz; say where your features are")


def test_groups_stay_together(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", g=GROUPS, y=Y % 3)
    tests = set()
    for seed in range(10):
        pool = arrays(path, group="g", split_seed=seed).load(silent)
        assert pool.names == tuple(f"user{group}/{label}" for group in range(4) for label in range(3))
        assert pool.groups == tuple(f"user{group}" for group in range(4) for _ in range(3))
        holds(pool, np.array([f"{group}/{label}" for group, label in zip(GROUPS, Y % 3, strict=True)]))
        homes = {part: {name.split("/")[0] for name in names} for part, names in named(pool).items()}
        assert sorted(len(groups) for groups in homes.values()) == [1, 1, 2]
        assert len(set.union(*homes.values())) == 4
        tests.add(tuple(homes["test"]))
    assert len(tests) > 2
    two = npz(tmp_path / "b.npz", g=GROUPS == "user1")
    with pytest.raises(DataError, match=r"has 2 groups \(False, True\); train, val and test need 1 or more each"):
        arrays(two, group="g").load(silent)
    lone = npz(tmp_path / "c.npz", g=GROUPS, y=np.zeros_like(Y))
    with pytest.raises(DataError, match=r"has 2 train, 1 val, 1 test classes; val needs 2 or more"):
        arrays(lone, group="g").load(silent)
    slashes = npz(tmp_path / "d.npz", g=np.where(Y > 5, "a", "a/b"), y=np.where(Y > 5, "b/c", "c"))
    with pytest.raises(DataError, match="class a/b/c is of two groups"):
        arrays(slashes, group="g").load(silent)


def test_split_file(tmp_path: Path) -> None:
    source = npz(tmp_path / "a.npz", y=Y % 3, g=GROUPS)
    pool = arrays(source, group="g", split_seed=4).load(silent)
    path = tmp_path / "split.json"
    path.write_text(split_text(named(pool)))
    assert named(arrays(source, group="g", split=str(path)).load(silent)) == named(pool)
    first, second = pool.splits["test"][0], pool.splits["train"][0]
    torn = pool._replace(
        splits={**pool.splits, "test": (*pool.splits["test"][1:], second), "train": (first, *pool.splits["train"][1:])}
    )
    path.write_text(split_text(named(torn)))
    with pytest.raises(DataError, match=r"group user\d has classes in train and in test; put all of them into one"):
        arrays(source, group="g", split=str(path)).load(silent)
    with pytest.raises(DataError, match=r"names 12 classes that are not in data.path=.* there are 3, such as 0"):
        arrays(source, split=str(path)).load(silent)


def test_a_row_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz")
    splits = named(arrays(path).load(silent))
    x = X.copy()
    x[np.flatnonzero(int(splits["test"][0]) == Y)[0]] = x[np.flatnonzero(int(splits["train"][0]) == Y)[0]]
    npz(path, x=x)
    with pytest.raises(DataError, match="1 items are the same in classes of two splits"):
        arrays(path).load(silent)
    holds(arrays(path, duplicates="warn").load(silent), Y.astype(str), x)


def test_a_changed_file_is_packed_anew(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", other=X * 2)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    beside = arrays(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    identities = {arrays(path).identity(), beside.identity()}
    holds(arrays(path).load(silent), Y.astype(str))
    holds(arrays(path, x="other").load(silent), Y.astype(str), X * 2)
    holds(beside.load(silent), Y.astype(str))
    npz(path, x=X + 1)
    np.save(tmp_path / "y.npy", Y[::-1])
    for name in ("a.npz", "y.npy"):
        os.utime(tmp_path / name, ns=(1, 1))
    holds(arrays(path).load(silent), Y.astype(str), X + 1)
    holds(beside.load(silent), Y[::-1].astype(str))
    identities |= {arrays(path).identity(), beside.identity()}
    assert len(identities) == 4
    path.rename(tmp_path / "b.npz")
    assert arrays(tmp_path / "b.npz").identity() in identities
    assert arrays(path).identity() == arrays(None).identity() == ""


def test_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path / "a.npz")
    first = arrays(path).load(silent)
    monkeypatch.setattr("metarun.data.read.tables.TableReader.table", None)
    assert np.array_equal(first.items, arrays(path, split_seed=5).load(silent).items)


def test_values_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"val_share=-0.1: is a share"):
        arrays(None, val_share=-0.1)
    with pytest.raises(ConfigError, match=r"data.standardise=rows: no such choice"):
        arrays(None, standardise="rows")


EXAMPLES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "texts": ("npz", {}, 48, 128),
    "table": ("npy", {"label_column": -1}, 30, 17),
    "molecules": ("parquet", {"y": "active", "group": "assay", "duplicates": "warn"}, 80, 105),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples(tmp_path: Path, name: str) -> None:
    suffix, changed, classes, columns = EXAMPLES[name]
    pools = []
    for place, seed in enumerate(("1", "1", "2")):
        path = tmp_path / f"{place}.{suffix}"
        script = ROOT / f"scripts/examples/{name}.py"
        subprocess.run([sys.executable, script, path, "--seed", seed], check=True, capture_output=True)
        pools.append(arrays(path, **changed).load(silent))
    assert len(pools[0].names) == classes
    assert pools[0].items.shape[1] == columns
    assert min(len(numbers) for numbers in pools[0].splits.values()) >= 5  # 5-way tasks
    assert np.diff(pools[0].bounds).min() >= 20
    assert np.array_equal(pools[0].items, pools[1].items)
    assert not np.array_equal(pools[0].items, pools[2].items)
