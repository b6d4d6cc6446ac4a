"""Task shapes for tests, plain unless said otherwise; and a pool as one block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.pool import Pool
from metarun.data.tasks.contracts import CountRange, TaskShape


def shape(ways: CountRange, shots: CountRange, queries: int, noise: float = 0.0, **changed: Any) -> TaskShape:
    plain: dict[str, Any] = {"imbalance": 0, "sampler": "uniform", "tasks": None, "order": "cyclic"}
    return TaskShape(ways, shots, queries, noise, **{**plain, **changed})


def cube(pool: Pool) -> NDArray[np.uint8]:
    """[classes, items, C, H, W] of a pool whose classes are all of one size."""
    found: NDArray[np.uint8] = pool.items.astype(np.uint8, copy=False).reshape(
        len(pool.names), -1, *pool.items.shape[1:]
    )
    return found
