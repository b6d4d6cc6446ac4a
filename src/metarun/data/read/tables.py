"""Rows of numbers with a label each, from .npz, .npy and Parquet files; nothing in a file is ever executed."""

from __future__ import annotations

import importlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.data.splits.split_file import some
from metarun.data.store.pool import DataError, Say

DAMAGED = (OSError, ValueError, EOFError, KeyError, SyntaxError, RuntimeError, MemoryError, zipfile.BadZipFile)
BROKEN = (
    *DAMAGED,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    TypeError,
    OverflowError,
)  # all that damaged files were seen to raise
NUMBERS = "biuf"  # numpy's kinds
EXACT = 2.0**53  # up to which a float64 counts in whole numbers


class Table:
    """What a file holds, row by row."""

    def __init__(
        self, x: NDArray[Any], y: NDArray[Any], group: NDArray[Any] | None, where: str, columns: Sequence[str] = ()
    ) -> None:
        self.x, self.where, self.columns = x, where, tuple(columns)
        if x.dtype.kind not in NUMBERS:
            raise DataError(f"{where}: features of type {x.dtype}; need numbers in [rows, columns]")
        if x.ndim != 2 or not x.size:
            raise DataError(f"{where}: features of shape {list(x.shape)}; need [rows, columns], such as len(x), -1")
        self.y = self._words(y, "label")
        self.group = None if group is None else self._words(group, "group")

    def _words(self, values: NDArray[Any], what: str) -> NDArray[Any]:
        """Whole numbers or texts, one per row."""
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.shape != (len(self.x),):
            raise DataError(
                f"{self.where}: {what}s of shape {list(values.shape)} for {len(self.x)} rows; need one {what} a row"
            )
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        if values.dtype.kind == "f":
            wrong = np.flatnonzero(~((abs(values) < EXACT) & (np.floor(values) == values)))
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{self.where}: {what} {values[row]} in row {row}; {what}s are whole numbers or texts, one per row"
                )
            values = values.astype(np.int64)
        if values.dtype.kind not in "biuU":
            raise DataError(f"{self.where}: {what}s of type {values.dtype}; need whole numbers or texts")
        return values

    def rows(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            found: NDArray[np.float32] = np.asarray(self.x[chosen]).astype(np.float32)
        wrong = np.argwhere(~np.isfinite(found))
        if len(wrong):
            row, column = int(chosen[wrong[0][0]]), int(wrong[0][1])
            name = f" ({self.columns[column]})" if self.columns else ""
            raise DataError(
                f"{self.where}: row {row}, column {column}{name} is {self.x[row, column]}, counted from 0; "
                "features have to be finite numbers of 32 bits: fill in or drop"
            )
        return found


@dataclass(frozen=True)
class Reader:
    """Which parts of a file are what; a name that its format has no use for is an error."""

    path: Path
    x: str
    y: str
    group: str | None
    labels: str | None
    label_column: int | None
    columns: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        beside = [self.labels, self.group] if self._suffix == ".npy" else []
        return [self.path, *(Path(name).expanduser() for name in beside if name)]

    @property
    def _suffix(self) -> str:
        return self.path.suffix.lower()

    def table(self, say: Say) -> Table:
        readers = {".npz": self._npz, ".npy": self._npy, ".parquet": self._parquet}
        if self._suffix not in readers or self.path.is_dir():
            raise DataError(f"data.path={self.path}: need a file .npz, .npy or .parquet; data=folder reads pictures")
        unused: dict[str, object] = {}
        unused |= {"labels": self.labels, "label_column": self.label_column} if self._suffix != ".npy" else {}
        unused |= {"columns": self.columns or None} if self._suffix != ".parquet" else {}
        for name, value in unused.items():
            if value is not None:
                raise DataError(f"data.{name}={value}: has no meaning for a {self._suffix} file; leave it out")
        return readers[self._suffix](say)

    def _npz(self, say: Say) -> Table:
        try:
            with self.path.open("rb") as raw:  # opened here: numpy leaves a damaged one open
                return self._parts(np.load(raw, allow_pickle=False))
        except (*BROKEN, AttributeError) as problem:  # the latter: a .npy by the wrong name
            raise DataError(f"{self.path} is no readable .npz file ({_told(problem)})") from problem

    def _parts(self, file: Any) -> Table:
        parts: dict[str, NDArray[Any]] = {}
        for field, key in (("x", self.x), ("y", self.y), ("group", self.group)):
            if key is None:
                continue
            if key not in file.files:
                raise DataError(f"data.{field}={key}: {self.path} has no such array; it has {', '.join(file.files)}")
            try:
                parts[field] = file[key]
            except BROKEN as problem:
                raise DataError(f"{self.path}: {key} cannot be read ({_told(problem)})") from problem
        return Table(parts["x"], parts["y"], parts.get("group"), str(self.path))

    def _npy(self, say: Say) -> Table:
        x = _array(self.path, "r")
        group = None if self.group is None else _array(Path(self.group).expanduser(), None)
        if (self.labels is None) == (self.label_column is None):
            raise DataError(
                f"{self.path} has features alone: name a file of labels (data.labels=y.npy), or the column that they "
                "are in (data.label_column=-1), and not both"
            )
        if self.labels is not None:
            return Table(x, _array(Path(self.labels).expanduser(), None), group, str(self.path))
        assert self.label_column is not None
        if x.ndim != 2 or not -x.shape[1] <= self.label_column < x.shape[1]:
            raise DataError(f"data.label_column={self.label_column}: {self.path} has shape {list(x.shape)}")
        features, label = np.delete(x, self.label_column, axis=1), x[:, self.label_column]
        return Table(features, np.asarray(label), group, str(self.path))

    def _parquet(self, say: Say) -> Table:
        try:
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError as problem:
            raise DataError(f"{self.path} needs pyarrow: pip install metarun[parquet]") from problem
        try:
            file = parquet.ParquetFile(self.path)
            there, kinds = file.schema_arrow.names, file.schema_arrow.types
        except BROKEN as problem:
            raise DataError(f"{self.path} is no readable .parquet file ({_told(problem)})") from problem
        with file:
            keys = {"y": self.y} | ({} if self.group is None else {"group": self.group})
            for field, key in (*keys.items(), *(("columns", name) for name in self.columns)):
                if there.count(key) != 1:
                    raise DataError(
                        f"data.{field}={key}: {self.path} has {there.count(key)} columns of this name; "
                        f"it has {', '.join(there)}"
                    )
            columns = self._features(dict(zip(there, kinds, strict=True)), say)
            try:
                table = file.read(columns=[*dict.fromkeys([*keys.values(), *columns])])
            except BROKEN as problem:
                raise DataError(f"{self.path} cannot be read ({_told(problem)})") from problem
        x, names = _matrix(table, columns, str(self.path))
        group = None if self.group is None else _labels(table.column(self.group), self.group, str(self.path))
        return Table(x, _labels(table.column(self.y), self.y, str(self.path)), group, str(self.path), names)

    def _features(self, kinds: dict[str, Any], say: Say) -> list[str]:
        """Listed columns; or all of numbers but labels and groups; or the only one of lists."""
        taken = (self.y, self.group)
        single = [name for name, kind in kinds.items() if _is_number(kind) and name not in taken]
        lists = [name for name, kind in kinds.items() if _is_list(kind) and name not in taken]
        wrong = [name for name in self.columns if name not in (*single, *lists)]
        if wrong:
            told = ", ".join(f"{name} ({kinds[name]})" for name in wrong)
            raise DataError(f"data.columns: {self.path}: no feature can be made of {told}; leave it out")
        chosen = list(self.columns) or single or lists
        if len([name for name in chosen if name in lists]) > (len(chosen) == 1) or (
            not self.columns and single and lists
        ):
            raise DataError(
                f"{self.path} has columns of lists ({some(lists)}) and {len(single)} of numbers; "
                f"name the one of lists, or those of numbers: data.columns=[{lists[0]}]"
            )
        if not chosen:
            told = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(f"{self.path} has no column of numbers for features; it has {told}")
        others = [name for name in kinds if name not in (*chosen, *taken)]
        if others and not self.columns:
            say(f"{self.path}: columns that are no numbers were left out: {', '.join(others)}")
        return chosen


def _told(problem: BaseException) -> str:
    if "Object arrays" in str(problem) or "Python objects" in str(problem):
        return "it holds Python objects, which are never loaded; save texts by y.astype(str)"
    return (str(problem) or type(problem).__name__).splitlines()[0]


def _array(path: Path, mapped: Any) -> NDArray[Any]:
    try:
        found: Any = np.load(path, mmap_mode=mapped, allow_pickle=False)
    except BROKEN as problem:
        raise DataError(f"{path} is no readable .npy file ({_told(problem)})") from problem
    if not isinstance(found, np.ndarray):
        found.close()
        raise DataError(f"{path} is a .npz file; name it so")
    return found


def _is_number(kind: Any) -> bool:
    types: Any = importlib.import_module("pyarrow.types")
    return any(is_one(kind) for is_one in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _is_list(kind: Any) -> bool:
    types: Any = importlib.import_module("pyarrow.types")
    is_one = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_one) and _is_number(kind.value_type)


def _labels(column: Any, name: str, where: str) -> NDArray[Any]:
    values = column.to_pylist()
    if None in values:
        raise DataError(f"{where}: {name} is empty in row {values.index(None)}, counted from 0; every row needs one")
    if any(isinstance(value, bytes) for value in values):
        values = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    if not all(isinstance(value, int | float | str) for value in values):
        raise DataError(f"{where}: {name} is of type {column.type}; labels are whole numbers or texts")
    return np.array(values)


def _matrix(table: Any, columns: list[str], where: str) -> tuple[NDArray[Any], list[str]]:
    """Features and their names. An empty cell is no number, which is told when the row is packed."""
    pyarrow: Any = importlib.import_module("pyarrow")
    first = table.column(columns[0])
    if _is_list(first.type):
        lengths = [0 if value is None else len(value) for value in first.to_pylist()]
        wrong = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
        if wrong is not None:
            raise DataError(
                f"{where}: {columns[0]} has {lengths[wrong]} numbers in row {wrong} and {lengths[0]} in row 0; "
                "all rows need as many"
            )
        flat = _floats(pyarrow.chunked_array([chunk.flatten() for chunk in first.chunks], first.type.value_type))
        return flat.reshape(len(lengths), -1), [f"{columns[0]}[{place}]" for place in range(lengths[0])]
    x = np.empty((table.num_rows, len(columns)), np.float64)
    for place, name in enumerate(columns):
        x[:, place] = _floats(table.column(name))
    return x, columns


def _floats(column: Any) -> NDArray[np.float64]:
    pyarrow: Any = importlib.import_module("pyarrow")
    kind: Any = column.type
    if str(kind).startswith("decimal"):
        return np.array([np.nan if value is None else float(Decimal(value)) for value in column.to_pylist()])
    if str(kind) == "bool":
        column = column.cast(pyarrow.int8())
    found: NDArray[np.float64] = column.cast(pyarrow.float64(), safe=False).to_numpy()
    return found
