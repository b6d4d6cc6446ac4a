"""What methods without an inner loop share: embeddings of a task, and which support item belongs to which label.

N cannot be read off tensor shapes, so outputs have one column for each support item: labels 0 .. S-1. Labels that do
not occur in the support are absent, and their column holds the lowest number of the type.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun.algos.pieces.norm_statistics import BatchNormMode, stored_at, update_stored
from metarun.types import BUFFERS, Episode, Meta, Net, Params


class EpisodeEmbeddings(NamedTuple):
    support: Tensor  # z_SD
    query: Tensor  # z_QD
    buffers: Params  # the running averages after both passes


def embed_episode(bn: BatchNormMode, net: Net, meta: Meta, episode: Episode) -> EpisodeEmbeddings:
    """In training: each batch is normalised by its own statistics, or the query by the support's (bn=support)."""
    z_SD, support_stats = net.embed(meta["weights"], episode.support.x)
    z_QD, query_stats = net.embed(meta["weights"], episode.query.x, support_stats if bn == "support" else {})
    buffers = {name: rows for name, rows in meta.get(BUFFERS, {}).items() if name in support_stats}
    for used in (support_stats, query_stats):
        buffers = update_stored(buffers, 0, used, net.momentum)
    return EpisodeEmbeddings(z_SD, z_QD, buffers)


def embed_support(bn: BatchNormMode, net: Net, meta: Meta, x: Tensor) -> tuple[Tensor, Params]:
    """At test: z_SD, and the statistics to normalise queries with (empty: their own)."""
    stored = stored_at(meta.get(BUFFERS, {}), 0)
    z_SD, used = net.embed(meta["weights"], x, stored)
    return z_SD, used if bn == "support" else stored


def label_members(y_S: Tensor) -> Tensor:
    """member_NS[n, s]: whether item s has label n, for the labels n = 0 .. S-1."""
    return torch.arange(len(y_S), device=y_S.device).unsqueeze(1) == y_S


def label_means(z_SD: Tensor, member_NS: Tensor) -> Tensor:
    """z_ND: the mean of each label's items; zero for an absent label."""
    count_N1 = member_NS.sum(dim=1, keepdim=True).clamp(min=1)
    return member_NS.to(z_SD.dtype) @ z_SD / count_N1


def mask_absent(outputs_QN: Tensor, present_N: Tensor) -> Tensor:
    """The lowest number of the type in the columns of absent labels, so that softmax and argmax ignore them."""
    return torch.where(present_N, outputs_QN, torch.finfo(outputs_QN.dtype).min)


def unit_rows(z_BD: Tensor) -> Tensor:
    """Each row divided by its Euclidean length."""
    length_B1: Tensor = torch.linalg.vector_norm(z_BD, dim=1, keepdim=True)
    return z_BD / (length_B1 + 1e-8)
