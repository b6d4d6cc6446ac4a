"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016, arXiv 1606.04080).

    p(n | x) = sum over i of class n of a(x, x_i),   a(x, x_i) = softmax_i(scale * cosine(f(x), g(x_i)))

The outputs are the logarithms of these probabilities. With context=none, f = g = the net. With context=full (the
paper's full context embeddings, appendix A), from the net's embeddings z, all of size D:

    g(x_i) = z_i + forward LSTM(z_1 .. z_i) + backward LSTM(z_S .. z_i)
    f(x) = h_K:   r_k = sum_i softmax_i(h_k . g(x_i)) g(x_i),   h_k+1 = z + LSTM(z, [h_k, r_k]),   h_0 = 0

so that g, as in the paper, depends on the order of the support, which is sorted by class here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from metarun.algos.pieces.checks import check_choice, check_counts, check_positive
from metarun.algos.pieces.dense_lstm import lstm_init
from metarun.algos.pieces.full_context import attention_lstm, bidirectional_embeddings
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers
from metarun.algos.pieces.support_sets import embed_episode, embed_support, label_members, mask_absent, unit_rows
from metarun.algos.pieces.weights import body_weights
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class MatchingSupport(NamedTuple):
    g: Tensor  # embeddings g_SD
    y: Tensor  # their labels
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
        check_choice("context", self.context, ("none", "full"))
        check_counts(processing_steps=self.processing_steps)
        check_positive(scale=self.scale)
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta: Meta = {"weights": body_weights(weights), **fresh_buffers(self.bn, net, 0)}
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
        z_SD, z_QD, buffers = embed_episode(self.bn, net, meta, episode)
        logits_QS = self._logits(meta, z_QD, self._support_embeddings(meta, z_SD), episode.support.y)
        loss = task_loss(logits_QS, episode.query.y)
        return loss, Aux(metrics_of(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> MatchingSupport:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return MatchingSupport(self._support_embeddings(meta, z_SD), support.y, stats)

    def predict(self, net: Net, meta: Meta, adapted: MatchingSupport, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return self._logits(meta, z_QD, adapted.g, adapted.y)

    def _support_embeddings(self, meta: Meta, z_SD: Tensor) -> Tensor:
        return z_SD if self.context == "none" else bidirectional_embeddings(meta["forward"], meta["backward"], z_SD)

    def _logits(self, meta: Meta, z_QD: Tensor, g_SD: Tensor, y_S: Tensor) -> Tensor:
        f_QD = z_QD if self.context == "none" else attention_lstm(meta["reader"], z_QD, g_SD, self.processing_steps)
        log_attention_QS = (self.scale * unit_rows(f_QD) @ unit_rows(g_SD).T).log_softmax(dim=1)
        member_NS = label_members(y_S)
        logits_QN = mask_absent(log_attention_QS.unsqueeze(1), member_NS).logsumexp(dim=2)
        return mask_absent(logits_QN, member_NS.any(dim=1))
