"""Rows of features with a label each, from .npz, .npy and Parquet files; nothing in a file is ever executed."""

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
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.pool import DataError, Say
from metarun.errors import first_few

TABLE_ERRORS = (  # all that damaged files were seen to raise
    *(OSError, ValueError, EOFError, KeyError, SyntaxError, RuntimeError, MemoryError, TypeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
NUMBER_KINDS = "biuf"  # numpy's kinds of whole numbers and of numbers with a point
LARGEST_EXACT = 2.0**53  # below it a float64 has every whole number

Values = NDArray[np.generic]


class ArrowType(Protocol):
    """A pyarrow.DataType; of a list the type of its items."""

    @property
    def value_type(self) -> ArrowType: ...


class ArrowColumn(Protocol):
    """A pyarrow.ChunkedArray."""

    @property
    def type(self) -> ArrowType: ...

    @property
    def chunks(self) -> Sequence[ArrowChunk]: ...

    def to_pylist(self) -> list[object]: ...

    def to_numpy(self) -> NDArray[np.float64]: ...

    def cast(self, target: object, safe: bool = ...) -> ArrowColumn: ...


class ArrowChunk(Protocol):
    """A pyarrow.ListArray."""

    def flatten(self) -> object: ...


class ArrowTable(Protocol):
    """A pyarrow.Table."""

    @property
    def num_rows(self) -> int: ...

    def column(self, name: str) -> ArrowColumn: ...


class Table:
    """Features [rows, columns], a label for each row, and maybe a group for each row."""

    def __init__(self, x: Values, y: Values, group: Values | None, where: str, columns: Sequence[str] = ()) -> None:
        self.x, self.where, self.columns = x, where, tuple(columns)
        if x.dtype.kind not in NUMBER_KINDS:
            raise DataError(f"{where}: features of type {x.dtype}; need numbers in [rows, columns]")
        if x.ndim != 2 or not x.size:
            raise DataError(f"{where}: features of shape {list(x.shape)}; need [rows, columns], such as len(x), -1")
        self.y = self._label_words(y, "label")
        self.group = None if group is None else self._label_words(group, "group")

    def _label_words(self, values: Values, what: str) -> Values:
        """The labels or groups as whole numbers or texts, one for each row."""
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.shape != (len(self.x),):
            raise DataError(
                f"{self.where}: {what}s of shape {list(values.shape)} for {len(self.x)} rows; need one {what} a row"
            )
        if values.dtype.kind == "S":
            values = np.char.decode(values.astype(np.bytes_), "utf-8", "replace")
        if values.dtype.kind == "f":
            wrong = np.flatnonzero(~((abs(values) < LARGEST_EXACT) & (np.floor(values) == values)))
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
class TableReader:
    """Reads a table; its fields say which part of the file holds what, and none may be without use for the format."""

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
            with self.path.open("rb") as raw:  # opened here: numpy does not close a damaged file
                return self._from_npz(np.load(raw, allow_pickle=False))
        except (*TABLE_ERRORS, AttributeError) as problem:  # AttributeError: a .npy file with the wrong suffix
            raise DataError(f"{self.path} is no readable .npz file ({_reason_of(problem)})") from problem

    def _from_npz(self, file: np.lib.npyio.NpzFile) -> Table:
        parts: dict[str, Values] = {}
        for field, key in (("x", self.x), ("y", self.y), ("group", self.group)):
            if key is None:
                continue
            if key not in file.files:
                raise DataError(f"data.{field}={key}: {self.path} has no such array; it has {', '.join(file.files)}")
            try:
                parts[field] = file[key]
            except TABLE_ERRORS as problem:
                raise DataError(f"{self.path}: {key} cannot be read ({_reason_of(problem)})") from problem
        return Table(parts["x"], parts["y"], parts.get("group"), str(self.path))

    def _npy(self, say: Say) -> Table:
        x = _load_npy(self.path, "r")
        group = None if self.group is None else _load_npy(Path(self.group).expanduser(), None)
        if (self.labels is None) == (self.label_column is None):
            raise DataError(
                f"{self.path} has features alone: name a file of labels (data.labels=y.npy), or the column that they "
                "are in (data.label_column=-1), and not both"
            )
        if self.labels is not None:
            return Table(x, _load_npy(Path(self.labels).expanduser(), None), group, str(self.path))
        assert self.label_column is not None
        if x.ndim != 2 or not -x.shape[1] <= self.label_column < x.shape[1]:
            raise DataError(f"data.label_column={self.label_column}: {self.path} has shape {list(x.shape)}")
        features, label = np.delete(x, self.label_column, axis=1), x[:, self.label_column]
        return Table(features, np.asarray(label), group, str(self.path))

    def _parquet(self, say: Say) -> Table:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as problem:
            raise DataError(f"{self.path} needs pyarrow: pip install metarun[parquet]") from problem
        try:
            file = parquet.ParquetFile(self.path)
            there, kinds = file.schema_arrow.names, file.schema_arrow.types
        except TABLE_ERRORS as problem:
            raise DataError(f"{self.path} is no readable .parquet file ({_reason_of(problem)})") from problem
        with file:
            keys = {"y": self.y} | ({} if self.group is None else {"group": self.group})
            for field, key in (*keys.items(), *(("columns", name) for name in self.columns)):
                if there.count(key) != 1:
                    raise DataError(
                        f"data.{field}={key}: {self.path} has {there.count(key)} columns of this name; "
                        f"it has {', '.join(there)}"
                    )
            columns = self._feature_columns(dict(zip(there, kinds, strict=True)), say)
            try:
                table = file.read(columns=[*dict.fromkeys([*keys.values(), *columns])])
            except TABLE_ERRORS as problem:
                raise DataError(f"{self.path} cannot be read ({_reason_of(problem)})") from problem
        x, names = _feature_matrix(table, columns, str(self.path))
        group = None if self.group is None else _label_values(table.column(self.group), self.group, str(self.path))
        return Table(x, _label_values(table.column(self.y), self.y, str(self.path)), group, str(self.path), names)

    def _feature_columns(self, kinds: dict[str, ArrowType], say: Say) -> list[str]:
        """Names of the feature columns: those listed, else all of numbers, else the only one of lists."""
        taken = (self.y, self.group)
        single = [name for name, kind in kinds.items() if _is_number_type(kind) and name not in taken]
        lists = [name for name, kind in kinds.items() if _is_list_type(kind) and name not in taken]
        wrong = [name for name in self.columns if name not in (*single, *lists)]
        if wrong:
            told = ", ".join(f"{name} ({kinds[name]})" for name in wrong)
            raise DataError(f"data.columns: {self.path}: no feature can be made of {told}; leave it out")
        chosen = list(self.columns) or single or lists
        if len([name for name in chosen if name in lists]) > (len(chosen) == 1) or (
            not self.columns and single and lists
        ):
            raise DataError(
                f"{self.path} has columns of lists ({first_few(lists)}) and {len(single)} of numbers; "
                f"name the one of lists, or those of numbers: data.columns=[{lists[0]}]"
            )
        if not chosen:
            told = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(f"{self.path} has no column of numbers for features; it has {told}")
        others = [name for name in kinds if name not in (*chosen, *taken)]
        if others and not self.columns:
            say(f"{self.path}: columns that are not numbers were left out: {', '.join(others)}")
        return chosen


def _reason_of(problem: BaseException) -> str:
    if "Object arrays" in str(problem) or "Python objects" in str(problem):
        return "it holds Python objects, which are never loaded; save texts by y.astype(str)"
    return (str(problem) or type(problem).__name__).splitlines()[0]


def _load_npy(path: Path, mapped: Literal["r"] | None) -> Values:
    try:
        found: Values | np.lib.npyio.NpzFile = np.load(path, mmap_mode=mapped, allow_pickle=False)
    except TABLE_ERRORS as problem:
        raise DataError(f"{path} is no readable .npy file ({_reason_of(problem)})") from problem
    if not isinstance(found, np.ndarray):
        found.close()
        raise DataError(f"{path} is a .npz file; name it so")
    return found


def _is_number_type(kind: ArrowType) -> bool:
    types = importlib.import_module("pyarrow.types")
    return any(is_one(kind) for is_one in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _is_list_type(kind: ArrowType) -> bool:
    types = importlib.import_module("pyarrow.types")
    is_one = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_one) and _is_number_type(kind.value_type)


def _label_values(column: ArrowColumn, name: str, where: str) -> Values:
    values = column.to_pylist()
    if None in values:
        raise DataError(f"{where}: {name} is empty in row {values.index(None)}, counted from 0; every row needs one")
    if any(isinstance(value, bytes) for value in values):
        values = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    if not all(isinstance(value, int | float | str) for value in values):
        raise DataError(f"{where}: {name} is of type {column.type}; labels are whole numbers or texts")
    return np.array(values)


def _feature_matrix(table: ArrowTable, columns: list[str], where: str) -> tuple[Values, list[str]]:
    """Features [rows, columns] and the names of the columns. An empty cell becomes NaN, which is refused later."""
    pyarrow = importlib.import_module("pyarrow")
    first = table.column(columns[0])
    if _is_list_type(first.type):
        lengths = [len(value) if isinstance(value, list) else 0 for value in first.to_pylist()]
        wrong = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
        if wrong is not None:
            raise DataError(
                f"{where}: {columns[0]} has {lengths[wrong]} numbers in row {wrong} and {lengths[0]} in row 0; "
                "all rows need as many"
            )
        flat = _as_floats(pyarrow.chunked_array([chunk.flatten() for chunk in first.chunks], first.type.value_type))
        return flat.reshape(len(lengths), -1), [f"{columns[0]}[{place}]" for place in range(lengths[0])]
    x = np.empty((table.num_rows, len(columns)), np.float64)
    for place, name in enumerate(columns):
        x[:, place] = _as_floats(table.column(name))
    return x, columns


def _as_floats(column: ArrowColumn) -> NDArray[np.float64]:
    pyarrow = importlib.import_module("pyarrow")
    if str(column.type).startswith("decimal"):
        return np.array([np.nan if value is None else float(Decimal(str(value))) for value in column.to_pylist()])
    if str(column.type) == "bool":
        column = column.cast(pyarrow.int8())
    found: NDArray[np.float64] = column.cast(pyarrow.float64(), safe=False).to_numpy()
    return found
