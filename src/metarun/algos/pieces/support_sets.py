"""What methods without an inner loop share: embeddings of a task, and which support item belongs to which label.

There are as many labels as support items, since N cannot be read off shapes. Those that do not occur are absent.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metarun.algos.pieces.norm_statistics import recall, record
from metarun.types import BUFFERS, Episode, Meta, Net, Params

BatchNormMode = Literal["batch", "support", "running"]


class Embedded(NamedTuple):
    support: Tensor
    query: Tensor
    buffers: Params


def body(weights: Params) -> Params:
    return {name: value for name, value in weights.items() if name.startswith("body.")}


def embed_task(bn: BatchNormMode, net: Net, meta: Meta, episode: Episode) -> Embedded:
    """In training: each batch by its own statistics, or the query by the support's; and the running ones after."""
    z_SD, seen_first = net.embed(meta["weights"], episode.support.x)
    z_QD, seen_last = net.embed(meta["weights"], episode.query.x, seen_first if bn == "support" else {})
    buffers = {name: rows for name, rows in meta.get(BUFFERS, {}).items() if name in seen_first}
    for seen in (seen_first, seen_last):
        buffers = record(buffers, 0, seen, net.momentum)
    return Embedded(z_SD, z_QD, buffers)


def embed_support(bn: BatchNormMode, net: Net, meta: Meta, x: Tensor) -> tuple[Tensor, Params]:
    """At test: the support, and the statistics to normalise queries with; nothing: their own."""
    stats = recall(meta.get(BUFFERS, {}), 0)
    z_SD, seen = net.embed(meta["weights"], x, stats)
    return z_SD, seen if bn == "support" else stats


def means(z_SD: Tensor, member_NS: Tensor) -> Tensor:
    """Of each label's items; zero where there are none."""
    count_N1 = member_NS.sum(dim=1, keepdim=True).clamp(min=1)
    return member_NS.to(z_SD.dtype) @ z_SD / count_N1


def unit(z_BD: Tensor) -> Tensor:
    length_B1: Tensor = torch.linalg.vector_norm(z_BD, dim=1, keepdim=True)
    return z_BD / (length_B1 + 1e-8)


def members(y_S: Tensor) -> Tensor:
    """[label, item]: whether the item has the label."""
    return torch.arange(len(y_S), device=y_S.device).unsqueeze(1) == y_S


def lowest_where_absent(out_QS: Tensor, present_S: Tensor) -> Tensor:
    """Softmax and argmax pass over the lowest number there is."""
    return torch.where(present_S, out_QS, torch.finfo(out_QS.dtype).min)
