"""The user's own features: a file of rows of numbers, each with a label and optionally with a group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.read.tables import Table, TableReader
from metarun.data.sources.packed_source import OwnFiles, Packing
from metarun.data.splits.split_file import draw_split, read_split, split_file_digest
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Pack, digest
from metarun.data.store.pool import DataError, Say, Splits

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

ROWS_AT_ONCE = 4096  # packed at a time


@dataclass(frozen=True)
class Arrays(OwnFiles):
    recipe: ClassVar[int] = 1
    unpacked: ClassVar[Mapping[str, str]] = {
        **OwnFiles.unpacked,
        "standardise": "features are packed as they are and normalised when a task is made of them",
    }

    x: str
    y: str
    group: str | None
    labels: str | None
    label_column: int | None
    columns: tuple[str, ...]
    standardise: Literal["columns", "none"]

    def identity(self) -> str:
        """The bytes of the files, wherever they lie; "" if they cannot be read."""
        try:
            sums = []
            for path in self._reader().files:
                with path.open("rb") as file:
                    sums.append(hashlib.file_digest(file, "blake2b").hexdigest())
        except (DataError, OSError):
            return ""
        return digest(sums, split_file_digest(self.split))

    def packing(self, say: Say) -> Packing:
        reader = self._reader()
        try:
            state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in reader.files]
        except OSError as problem:
            raise DataError(f"{problem.filename} cannot be read ({problem.strerror})") from problem
        return Packing(lambda: _contents(reader.table(say)), self._split_numbers, self.duplicates, files=state)

    def _reader(self) -> TableReader:
        path = self.existing_path("features are, a .npz, .npy or .parquet file")
        return TableReader(path, self.x, self.y, self.group, self.labels, self.label_column, self.columns)

    def _split_numbers(self, pack: Pack) -> Splits:
        where = f"data.path={self.path}"
        return pack.numbers(self._splits(pack.names, pack.groups, where), where)

    def _splits(self, names: tuple[str, ...], groups: tuple[str, ...], where: str) -> dict[Split, list[str]]:
        """All classes of a group lie in one split."""
        if self.split is None:
            return draw_split(names, groups, self.shares, where)
        splits = read_split(self.split, names, where)
        group_of = dict(zip(names, groups, strict=True)) if groups else {}
        split_of: dict[str, Split] = {}
        for split, name in ((split, name) for split, listed in splits.items() for name in listed if groups):
            before = split_of.setdefault(group_of[name], split)
            if before != split:
                raise DataError(
                    f"data.split={self.split}: group {group_of[name]} has classes in {before} and in {split}; "
                    "put all of them into one"
                )
        return splits


def _contents(table: Table) -> Contents:
    labels, label_of = np.unique(table.y, return_inverse=True)
    groups, group_of = np.array([""]), np.zeros_like(label_of)
    if table.group is not None:
        groups, group_of = np.unique(table.group, return_inverse=True)
    pairs, class_of, counts = np.unique(group_of * len(labels) + label_of, return_inverse=True, return_counts=True)
    group_names = tuple(str(groups[pair // len(labels)]) for pair in pairs)
    label_names = tuple(str(labels[pair % len(labels)]) for pair in pairs)
    names = label_names
    if table.group is not None:
        names = tuple(f"{group}/{label}" for group, label in zip(group_names, label_names, strict=True))
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{table.where}: class {double} is of two groups, by a / in their names; rename them")
    order = np.argsort(class_of, kind="stable")
    item, sizes = (table.x.shape[1],), tuple(map(int, counts))
    return Contents(names, sizes, item, _blocks_in(order, table.rows), group_names if table.group is not None else ())


def _blocks_in(
    order: NDArray[np.int64], rows: Callable[[NDArray[np.int64]], NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(order), ROWS_AT_ONCE):
        yield rows(order[start : start + ROWS_AT_ONCE])
