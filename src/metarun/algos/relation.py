"""Relation networks (Sung, Yang, Zhang, Xiang, Torr and Hospedales 2018, arXiv 1711.06025).

    c_n = sum of f(x) over the support of class n,   r_n(x) = sigmoid(g(c_n, f(x))),   loss = mean (r_n(x) - [y = n])^2

g, the relation module, is learned: two convolutional blocks and two dense layers over both feature maps, concatenated
along their channels (`channels`: number of channels of one map, with model.pooling=flatten), or over both vectors
(`channels: null`). `loss: cross_entropy` takes the softmax over n of the scores before the sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.algos.pieces.checks import check_choice, check_counts
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers, stored_at, update_stored
from metarun.algos.pieces.relation_module import fresh_relation_buffers, relation_init, relation_scores
from metarun.algos.pieces.support_sets import embed_episode, embed_support, label_members, mask_absent
from metarun.algos.pieces.weights import body_weights
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class RelationClasses(NamedTuple):
    c: Tensor  # c_ND
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
        check_counts(channels=1 if self.channels is None else self.channels, hidden=self.hidden)
        check_choice("loss", self.loss, ("mse", "cross_entropy"))
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like, size = next(iter(weights.values())), weights["head.weight"].shape[1]
        module = relation_init(seed, like, size, self.channels, self.hidden)
        meta: Meta = {"weights": body_weights(weights), **module, **fresh_buffers(self.bn, net, 0)}
        if self.bn == "running":
            meta[BUFFERS] = {**meta[BUFFERS], **fresh_relation_buffers(module)}
        return meta

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_episode(self.bn, net, meta, episode)
        c_ND, present_N = label_sums(z_SD, episode.support.y)
        stats = all_pair_scores(meta, z_SD, c_ND, present_N, {})[1] if self.bn == "support" else {}
        g_QN, used = all_pair_scores(meta, z_QD, c_ND, present_N, stats)
        out_QN = self._scores(g_QN, present_N)
        own = {name: rows for name, rows in meta.get(BUFFERS, {}).items() if name in used}
        buffers = {**buffers, **update_stored(own, 0, used, net.momentum)}
        loss = self._loss(out_QN, present_N, episode.query.y)
        return loss, Aux(metrics_of(loss, out_QN, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> RelationClasses:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        c_ND, present_N = label_sums(z_SD, support.y)
        pair_stats = {n: v for n, v in stored_at(meta.get(BUFFERS, {}), 0).items() if n.startswith("relation.")}
        if self.bn == "support":
            pair_stats = all_pair_scores(meta, z_SD, c_ND, present_N, {})[1]
        return RelationClasses(c_ND, present_N, stats, pair_stats)

    def predict(self, net: Net, meta: Meta, adapted: RelationClasses, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        g_QN, _ = all_pair_scores(meta, z_QD, adapted.c, adapted.present, adapted.pair_stats)
        return self._scores(g_QN, adapted.present)

    def _scores(self, g_QN: Tensor, present_N: Tensor) -> Tensor:
        return mask_absent(g_QN.sigmoid() if self.loss == "mse" else g_QN, present_N)

    def _loss(self, out_QN: Tensor, present_N: Tensor, y_Q: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            return task_loss(out_QN, y_Q)
        target_QN = y_Q.unsqueeze(1) == torch.arange(len(present_N), device=y_Q.device)
        errors_QN = torch.where(present_N, out_QN - target_QN.to(out_QN.dtype), 0).square()
        return errors_QN.sum() / (len(y_Q) * present_N.sum())


def label_sums(z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
    """c_ND, the sum of each label's items, and whether the label occurs; labels 0 .. S-1."""
    member_NS = label_members(y_S)
    return member_NS.to(z_SD.dtype) @ z_SD, member_NS.any(dim=1)


def all_pair_scores(meta: Meta, z_QD: Tensor, c_ND: Tensor, present_N: Tensor, stats: Params) -> tuple[Tensor, Params]:
    """g_QN of all pairs of a class and a query. Pairs of absent labels have no weight in the statistics."""
    first = c_ND.repeat(len(z_QD), 1)
    last = z_QD.repeat_interleave(len(c_ND), dim=0)
    counts = present_N.to(z_QD.dtype).repeat(len(z_QD))
    g_P, used = relation_scores(meta, torch.cat([first, last], dim=1), counts, stats)
    return g_P.reshape(len(z_QD), len(c_ND)), used
