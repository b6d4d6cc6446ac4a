"""Statistics of batch norm: which ones a forward pass uses, and the running averages that are kept of them.

Stored statistics are the entry "buffers" of Meta: a mean and a variance for each norm layer, each as a table of rows.
There is one row for all passes (bn=running), or one for each inner step and a last one for the query (bn=per_step).
Where nothing is stored (bn=batch, bn=support), the dictionary is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metarun.types import BUFFERS, Batch, Meta, Net, Params, StepIndex

BatchNormMode = Literal["batch", "support", "running"]
"""What queries are normalised by: their own statistics (transductive), the support's, or running averages."""

StepwiseBatchNormMode = Literal["batch", "support", "running", "per_step"]
"""The same, and running averages for each inner step."""


class NormPolicy(NamedTuple):
    """How the steps of an inner loop treat the stored statistics."""

    normalise_with: Callable[[Params, StepIndex], Params]
    """(stored, k) -> the statistics of step k; empty: those of the batch at hand."""
    updated: Callable[[Params, StepIndex, Params, float], Params]
    """(stored, k, statistics that step k used, momentum) -> stored."""


def fresh_buffers(bn: StepwiseBatchNormMode, net: Net, steps: int) -> Meta:
    """The entry "buffers" of a new Meta; empty where nothing is stored."""
    if bn not in ("running", "per_step"):
        return {}
    rows = steps + 1 if bn == "per_step" else 1
    return {BUFFERS: {name: value.repeat(rows, 1) for name, value in net.init_stats().items()}}


def stored_at(stored: Params, k: StepIndex) -> Params:
    return {name: row_at(rows, k) for name, rows in stored.items()}


def update_stored(stored: Params, k: StepIndex, used: Params, momentum: float) -> Params:
    """Moves the running averages of row k towards the statistics `used`."""
    return {
        name: torch.where(_row_mask(rows, k), torch.lerp(rows, used[name].detach(), momentum), rows)
        for name, rows in stored.items()
    }


def row_at(rows: Tensor, k: StepIndex) -> Tensor:
    """Row k, or the last row for a greater k."""
    found: Tensor = torch.where(_row_mask(rows, k), rows, 0).sum(dim=0)
    return found


def _row_mask(rows: Tensor, k: StepIndex) -> Tensor:
    """A mask instead of an index, since k may be a tensor of a compiled loop."""
    last = rows.shape[0] - 1
    k = k.clamp(max=last) if isinstance(k, Tensor) else min(k, last)
    at: Tensor = torch.arange(last + 1, device=rows.device) == k
    return at.reshape(-1, *(1,) * (rows.dim() - 1))


UPDATE_STORED = NormPolicy(normalise_with=lambda _stored, _k: {}, updated=update_stored)
"""In training: each step normalises by its batch, and the running averages follow."""

USE_STORED = NormPolicy(normalise_with=stored_at, updated=lambda stored, _k, _used, _momentum: stored)
"""At test: each step normalises by the running averages where there are any, and leaves them as they are."""


def query_outputs(
    bn: StepwiseBatchNormMode, net: Net, weights: Params, support: Batch, x: Tensor
) -> tuple[Tensor, Params]:
    """Outputs for query items in training, normalised by the support's statistics (bn=support) or by their own."""
    return net(weights, x, net(weights, support.x)[1] if bn == "support" else {})


def query_statistics(bn: StepwiseBatchNormMode, net: Net, weights: Params, stored: Params, support: Batch) -> Params:
    """The statistics that normalise queries at test; empty: their own."""
    if bn == "support":
        return net(weights, support.x)[1]
    return {name: rows[-1] for name, rows in stored.items()}
