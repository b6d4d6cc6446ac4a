"""Relation networks (Sung, Yang, Zhang, Xiang, Torr and Hospedales 2018, arXiv 1711.06025).

    c_n = sum of f(x) over the support of class n,   r_n(x) = sigmoid(g(c_n, f(x))),   loss = mean (r_n(x) - [y = n])^2

where g, the relation module, is learned: two convolutional blocks and two dense layers over both maps, one upon the
other (`channels`: that many in a map, which model.pooling=flatten keeps), or over both vectors (`channels: null`).
`loss: cross_entropy` takes the softmax over n of what goes into the sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.norm_statistics import fresh_buffers, recall, record
from metarun.algos.pieces.relation_module import relation, relation_init, relation_stats
from metarun.algos.pieces.support_sets import (
    BatchNormMode,
    body,
    embed_support,
    embed_task,
    lowest_where_absent,
    members,
)
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class Classes(NamedTuple):
    c: Tensor
    present: Tensor
    stats: Params  # of the body
    pair_stats: Params  # of the relation module


@dataclass(frozen=True)
class Relation:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "episodes"

    channels: int | None
    hidden: int
    loss: Literal["mse", "cross_entropy"]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        inner_loop.check_steps(channels=1 if self.channels is None else self.channels, hidden=self.hidden)
        inner_loop.check_choice("loss", self.loss, ("mse", "cross_entropy"))
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like, size = next(iter(weights.values())), weights["head.weight"].shape[1]
        module = relation_init(seed, like, size, self.channels, self.hidden)
        meta: Meta = {"weights": body(weights), **module, **fresh_buffers(self.bn, net, 0)}
        if self.bn == "running":
            meta[BUFFERS] = {**meta[BUFFERS], **relation_stats(module)}
        return meta

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_task(self.bn, net, meta, episode)
        c_ND, present_N = sums(z_SD, episode.support.y)
        stats = related(meta, z_SD, c_ND, present_N, {})[1] if self.bn == "support" else {}
        g_QN, seen = related(meta, z_QD, c_ND, present_N, stats)
        out_QN = self._scores(g_QN, present_N)
        own = {name: rows for name, rows in meta.get(BUFFERS, {}).items() if name in seen}
        buffers = {**buffers, **record(own, 0, seen, net.momentum)}
        loss = self._loss(out_QN, present_N, episode.query.y)
        return loss, Aux(inner_loop.measure(loss, out_QN, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Classes:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        c_ND, present_N = sums(z_SD, support.y)
        pair_stats = {n: v for n, v in recall(meta.get(BUFFERS, {}), 0).items() if n.startswith("relation.")}
        if self.bn == "support":
            pair_stats = related(meta, z_SD, c_ND, present_N, {})[1]
        return Classes(c_ND, present_N, stats, pair_stats)

    def predict(self, net: Net, meta: Meta, adapted: Classes, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return self._scores(related(meta, z_QD, adapted.c, adapted.present, adapted.pair_stats)[0], adapted.present)

    def _scores(self, g_QN: Tensor, present_N: Tensor) -> Tensor:
        return lowest_where_absent(g_QN.sigmoid() if self.loss == "mse" else g_QN, present_N)

    def _loss(self, out_QN: Tensor, present_N: Tensor, y_Q: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            return inner_loop.objective(out_QN, y_Q)
        target_QN = y_Q.unsqueeze(1) == torch.arange(len(present_N), device=y_Q.device)
        errors_QN = torch.where(present_N, out_QN - target_QN.to(out_QN.dtype), 0).square()
        return errors_QN.sum() / (len(y_Q) * present_N.sum())


def sums(z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of each label 0 .. S-1, and whether the label occurs."""
    member_NS = members(y_S)
    return member_NS.to(z_SD.dtype) @ z_SD, member_NS.any(dim=1)


def related(meta: Meta, z_QD: Tensor, c_ND: Tensor, present_N: Tensor, stats: Params) -> tuple[Tensor, Params]:
    """The relation module on every class with every query; pairs of absent labels do not count in its statistics."""
    first = c_ND.repeat(len(z_QD), 1)
    last = z_QD.repeat_interleave(len(c_ND), dim=0)
    counts = present_N.to(z_QD.dtype).repeat(len(z_QD))
    g_P, seen = relation(meta, torch.cat([first, last], dim=1), counts, stats)
    return g_P.reshape(len(z_QD), len(c_ND)), seen
