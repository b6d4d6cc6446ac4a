"""The user's own features: a file of rows of numbers, each with a label, and maybe with a group its class is from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.read.tables import Reader, Table
from metarun.data.splits import split_file
from metarun.data.splits.split_file import Shares
from metarun.data.store.contents import Contents
from metarun.data.store.pack import Duplicates, digest, packed
from metarun.data.store.pool import DataError, Pool

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how rows are packed: it names the cached file
BLOCK = 4096  # rows


@dataclass(frozen=True)
class Arrays:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("path",)

    path: str | None
    x: str
    y: str
    group: str | None
    labels: str | None
    label_column: int | None
    columns: tuple[str, ...]
    standardise: Literal["columns", "none"]
    duplicates: Duplicates
    split: str | None
    split_seed: int
    val_share: float
    test_share: float

    def __post_init__(self) -> None:
        self._shares.check()

    @property
    def _shares(self) -> Shares:
        return Shares(self.split_seed, self.val_share, self.test_share)

    def identity(self) -> str:
        """The same wherever the file lies, and another when it holds something else; empty where it cannot be read."""
        try:
            sums = []
            for path in self._reader().files:
                with path.open("rb") as file:
                    sums.append(hashlib.file_digest(file, "blake2b").hexdigest())
        except (DataError, OSError):
            return ""
        return digest(sums, split_file.content(self.split))

    def load(self, say: Callable[[str], None]) -> Pool:
        reader = self._reader()
        try:
            marks = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in reader.files]
        except OSError as problem:
            raise DataError(f"{problem.filename} cannot be read ({problem.strerror})") from problem
        key = digest(RECIPE, marks, self.x, self.y, self.group, self.labels, self.label_column, self.columns)
        pack = packed(f"arrays-{key}", lambda: self._contents(reader.table(say)), say)
        where = f"data.path={self.path}"
        splits = self._splits(pack.names, pack.groups, where)
        return pack.pool(pack.numbers(splits, where), self.duplicates, say)

    def _reader(self) -> Reader:
        path = split_file.place(self.path, "features are, a .npz, .npy or .parquet file")
        return Reader(path, self.x, self.y, self.group, self.labels, self.label_column, self.columns)

    def _splits(self, names: tuple[str, ...], groups: tuple[str, ...], where: str) -> dict[Split, list[str]]:
        """No group is in two splits."""
        if self.split is None:
            return split_file.drawn(names, groups, self._shares, where)
        splits = split_file.read(self.split, names, where)
        group_of = dict(zip(names, groups, strict=True)) if groups else {}
        home: dict[str, Split] = {}
        for part, name in ((part, name) for part, listed in splits.items() for name in listed if groups):
            before = home.setdefault(group_of[name], part)
            if before != part:
                raise DataError(
                    f"data.split={self.split}: group {group_of[name]} has classes in {before} and in {part}; "
                    "put all of them into one"
                )
        return splits

    def _contents(self, table: Table) -> Contents:
        labels, label_of = np.unique(table.y, return_inverse=True)
        groups, group_of = np.array([""]), np.zeros_like(label_of)
        if table.group is not None:
            groups, group_of = np.unique(table.group, return_inverse=True)
        pairs, class_of, counts = np.unique(group_of * len(labels) + label_of, return_inverse=True, return_counts=True)
        grouped = tuple(str(groups[pair // len(labels)]) for pair in pairs)
        plain = tuple(str(labels[pair % len(labels)]) for pair in pairs)
        names = plain
        if table.group is not None:
            names = tuple(f"{group}/{label}" for group, label in zip(grouped, plain, strict=True))
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{table.where}: class {double} is of two groups, by a / in their names; rename them")
        order = np.argsort(class_of, kind="stable")
        item, sizes = (table.x.shape[1],), tuple(map(int, counts))
        return Contents(names, sizes, item, _rows(table, order), grouped if table.group is not None else ())


def _rows(table: Table, order: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(order), BLOCK):
        yield table.rows(order[start : start + BLOCK])
