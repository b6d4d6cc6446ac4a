"""A made-up data set of features in groups, whose classes differ in size."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from metarun.data.splits import SPLITS
from metarun.data.store.pool import Pool, make_pool
from metarun.types import Kind, Split

GROUPS = {"train": (4, 4, 7), "val": (3, 3), "test": (6, 5, 4)}
SIZES = {"train": (5, 9, 12), "val": (6, 8), "test": (20, 7, 6)}  # items of the classes of each group


class Grouped:
    """Item r has the one feature r, so that what was drawn can be read off."""

    kind: ClassVar[Kind] = "classes"
    standardise: Literal["columns", "none"] = "none"

    def load(self, say: object) -> Pool:
        names: list[str] = []
        counts: list[int] = []
        splits: dict[Split, tuple[int, ...]] = {}
        for split in SPLITS:
            first = len(names)
            for group, (classes, items) in enumerate(zip(GROUPS[split], SIZES[split], strict=True)):
                names += [f"{split}{group}/{number}" for number in range(classes)]
                counts += [items] * classes
            splits[split] = tuple(range(first, len(names)))
        rows = np.arange(sum(counts), dtype=np.float32)[:, None]
        return make_pool(rows, tuple(counts), tuple(names), splits, tuple(name.split("/")[0] for name in names))
