"""Conditional neural processes (Garnelo et al. 2018, arXiv 1807.01613).

    values:   r = mean over the support of h(x_i, y_i),   (mu, s) = g(x, r),   sigma = floor + (1 - floor) softplus(s),
              loss = -log N(y; mu, sigma^2), which is also the logged loss; mu is the prediction
    classes:  r_n = mean of h(x_i) over the support of class n,   logits = g(x, (r_1 .. r_N))

x is the embedding of an item by the body of the net. `decode: by_class` is ours: logit_n = g(x, r_n, mean of all r), so
that all classes share one g. A net with one output means values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.algos.pieces.checks import check_choice, check_counts
from metarun.algos.pieces.dense_lstm import dense, dense_init
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers
from metarun.algos.pieces.normal import bounded_sigma, negative_log_likelihood
from metarun.algos.pieces.support_sets import embed_episode, embed_support, label_means
from metarun.algos.pieces.weights import body_weights
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class CNPContext(NamedTuple):
    r: Tensor  # r_NR, or r_1R for values
    stats: Params


@dataclass(frozen=True)
class CNP:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    encoder: tuple[int, ...]  # layers of h; the last is the size of r
    decoder: tuple[int, ...]  # layers of g before its outputs
    decode: Literal["joint", "by_class"]
    floor: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        if not self.encoder:
            raise ValueError("encoder=[]: need at least one size, that of r")
        check_counts(encoder=min(self.encoder), decoder=min(self.decoder, default=1))
        if not 0 < self.floor < 1:
            raise ValueError(f"floor={self.floor}: a standard deviation between 0 and 1")
        check_choice("decode", self.decode, ("joint", "by_class"))
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like = weights["head.weight"]
        outputs, size = like.shape
        values = outputs == 1
        h = dense_init(seed, like, size + values, *self.encoder)
        by_class = self.decode == "by_class" and not values
        rows, logits = (2, 1) if by_class else (outputs, outputs + values)
        g = dense_init(seed + 1, like, size + rows * self.encoder[-1], *self.decoder, logits)
        return {"weights": body_weights(weights), "encoder": h, "decoder": g, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        support, query = episode.support, episode.query
        x_SD, x_QD, buffers = embed_episode(self.bn, net, meta, episode)
        out = self._decoded(meta, mean_representations(net, meta, x_SD, support.y), x_QD)
        if query.y.is_floating_point():
            mu, s = out.chunk(2, dim=-1)
            loss = negative_log_likelihood(query.y, mu, bounded_sigma(s, self.floor))
        else:
            loss = task_loss(out, query.y)
        return loss, Aux(metrics_of(loss, out, query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> CNPContext:
        x_SD, stats = embed_support(self.bn, net, meta, support.x)
        return CNPContext(mean_representations(net, meta, x_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: CNPContext, x: Tensor) -> Tensor:
        x_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        out = self._decoded(meta, adapted.r, x_QD)
        return out.chunk(2, dim=-1)[0] if num_outputs(net) == 1 else out

    def _decoded(self, meta: Meta, r_NR: Tensor, x_QD: Tensor) -> Tensor:
        """g on all queries. There is one r for values."""
        if self.decode == "joint" or len(r_NR) == 1:
            return dense(meta["decoder"], torch.cat([x_QD, r_NR.flatten().expand(len(x_QD), -1)], dim=1))
        rows_NR = torch.cat([r_NR, r_NR.mean(dim=0).expand_as(r_NR)], dim=1)
        pairs = torch.cat([expanded(x_QD, 1, len(r_NR)), expanded(rows_NR, 0, len(x_QD))], dim=2)
        return dense(meta["decoder"], pairs).squeeze(2)


def expanded(rows: Tensor, dim: int, count: int) -> Tensor:
    return rows.unsqueeze(dim).expand(*rows.shape[:dim], count, *rows.shape[dim:])


def mean_representations(net: Net, meta: Meta, x_SD: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        return dense(meta["encoder"], torch.cat([x_SD, y], dim=1)).mean(dim=0, keepdim=True)
    return label_means(dense(meta["encoder"], x_SD), torch.arange(num_outputs(net), device=y.device).unsqueeze(1) == y)


def num_outputs(net: Net) -> int:
    head = net.module.head
    assert isinstance(head, torch.nn.Linear)
    return head.out_features
