"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016, arXiv 1606.04080).

    p(n | x) = sum over i of class n of a(x, x_i),   a(x, x_i) = softmax_i(scale * cosine(f(x), g(x_i)))

The outputs are the logarithms of these probabilities. Without context f = g = the net. With it (the paper's full
context embeddings, appendix A), from the net's embeddings z, all of one size D:

    g(x_i) = z_i + forward LSTM(z_1 .. z_i) + backward LSTM(z_S .. z_i)
    f(x) = h_K:   r_k = sum_i softmax_i(h_k . g(x_i)) g(x_i),   h_k+1 = z + LSTM(z, [h_k, r_k]),   h_0 = 0

so that g, as in the paper, depends on the order of the support, which lies class by class here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.dense_lstm import lstm_init
from metarun.algos.pieces.full_context import attentive, both_ways
from metarun.algos.pieces.norm_statistics import fresh_buffers
from metarun.algos.pieces.support_sets import (
    BatchNormMode,
    body,
    embed_support,
    embed_task,
    lowest_where_absent,
    members,
    unit,
)
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class Remembered(NamedTuple):
    g: Tensor
    y: Tensor
    stats: Params


@dataclass(frozen=True)
class Matching:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "episodes"

    context: Literal["none", "full"]
    processing_steps: int
    scale: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        inner_loop.check_choice("context", self.context, ("none", "full"))
        inner_loop.check_steps(processing_steps=self.processing_steps)
        inner_loop.check_rate("scale", self.scale)
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta: Meta = {"weights": body(weights), **fresh_buffers(self.bn, net, 0)}
        if self.context == "none":
            return meta
        like, size = next(iter(weights.values())), weights["head.weight"].shape[1]
        return {
            **meta,
            "forward": lstm_init(seed, like, size, size),
            "backward": lstm_init(seed + 1, like, size, size),
            "reader": lstm_init(seed + 2, like, 2 * size, size),
        }

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_task(self.bn, net, meta, episode)
        logits_QS = self._logits(meta, z_QD, self._g(meta, z_SD), episode.support.y)
        loss = inner_loop.objective(logits_QS, episode.query.y)
        return loss, Aux(inner_loop.measure(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Remembered:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return Remembered(self._g(meta, z_SD), support.y, stats)

    def predict(self, net: Net, meta: Meta, adapted: Remembered, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return self._logits(meta, z_QD, adapted.g, adapted.y)

    def _g(self, meta: Meta, z_SD: Tensor) -> Tensor:
        return z_SD if self.context == "none" else both_ways(meta["forward"], meta["backward"], z_SD)

    def _logits(self, meta: Meta, z_QD: Tensor, g_SD: Tensor, y_S: Tensor) -> Tensor:
        f_QD = z_QD if self.context == "none" else attentive(meta["reader"], z_QD, g_SD, self.processing_steps)
        shares_QS = (self.scale * unit(f_QD) @ unit(g_SD).T).log_softmax(dim=1)
        member_NS = members(y_S)
        logits_QN = lowest_where_absent(shares_QS.unsqueeze(1), member_NS).logsumexp(dim=2)
        return lowest_where_absent(logits_QN, member_NS.any(dim=1))
