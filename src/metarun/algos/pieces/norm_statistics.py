"""Normalisation statistics that are learned by averaging: rows, one for all passes or one for each inner step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.types import BUFFERS, Meta, Net, Params

BatchNormMode = Literal["batch", "support", "running", "per_step"]


class Statistics(NamedTuple):
    """Which statistics a pass normalises with (none: its own), and what is kept of those it used."""

    use: Callable[[Params, Any], Params]
    keep: Callable[[Params, Any, Params, float], Params]


def fresh_buffers(bn: BatchNormMode, net: Net, steps: int) -> Meta:
    """Statistics as rows: one for all passes, or one for each inner step and a last one for the query."""
    if bn not in ("running", "per_step"):
        return {}
    rows = steps + 1 if bn == "per_step" else 1
    return {BUFFERS: {name: value.repeat(rows, 1) for name, value in net.init_stats().items()}}


def recall(stats: Params, k: Any) -> Params:
    return {name: row(rows, k) for name, rows in stats.items()}


def record(stats: Params, k: Any, seen: Params, momentum: float) -> Params:
    """The running average of row k moved towards what was seen; a mask, since k may be a tensor of a compiled loop."""
    return {
        name: torch.where(_mask(rows, k), torch.lerp(rows, seen[name].detach(), momentum), rows)
        for name, rows in stats.items()
    }


def row(rows: Tensor, k: Any) -> Tensor:
    """Row k, or the last one there is."""
    found: Tensor = torch.where(_mask(rows, k), rows, 0).sum(dim=0)
    return found


def _mask(rows: Tensor, k: Any) -> Tensor:
    last = rows.shape[0] - 1
    k = k.clamp(max=last) if isinstance(k, Tensor) else min(k, last)
    at: Tensor = torch.arange(last + 1, device=rows.device) == k
    return at.reshape(-1, *(1,) * (rows.dim() - 1))


RECORD = Statistics(use=lambda _stats, _k: {}, keep=record)
RECALL = Statistics(use=recall, keep=lambda stats, _k, _seen, _momentum: stats)
