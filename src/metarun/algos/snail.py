"""SNAIL, the simple neural attentive learner (Mishra, Rohaninejad, Chen and Abbeel 2018, arXiv 1707.03141).

    x_t = (f(image_t), one-hot label_t),   t = 1 .. S the support, S + 1 the query, whose label is zeros
    Attention, TC, Attention, TC, Attention, and a linear layer whose output at S + 1 is the logits

TC is a stack of dense blocks of causal convolutions with dilations 1, 2, 4 .., until the last of N * shots + 1 items
sees the first; attention sees all items before. Adaptation happens in the activations alone. The sequence has the order
of the support, sorted by class; with more shots at test it is longer than in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.algos.pieces.checks import check_choice, check_counts
from metarun.algos.pieces.dense_lstm import dense, dense_init
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers
from metarun.algos.pieces.snail_blocks import (
    causal_attention,
    causal_attention_init,
    num_tc_layers,
    temporal_convolution,
    temporal_convolution_init,
)
from metarun.algos.pieces.support_sets import embed_episode, embed_support
from metarun.algos.pieces.weights import body_weights
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll

SEEDS_PER_BLOCK = 100  # a block draws its layers from consecutive seeds


class SNAILContext(NamedTuple):
    support: Tensor  # embeddings and labels
    stats: Params


@dataclass(frozen=True)
class SNAIL:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    shots: int  # with the head's ways: the sequence length that the dilations must cover
    keys: tuple[int, int, int]
    values: tuple[int, int, int]
    filters: tuple[int, int]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_counts(shots=self.shots, keys=min(self.keys), values=min(self.values), filters=min(self.filters))
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like = weights["head.weight"]
        ways, size = like.shape
        layers = num_tc_layers(ways * self.shots + 1)
        blocks: Meta = {}
        size += ways
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            blocks[f"attention{i}"] = causal_attention_init(seed + 2 * i * SEEDS_PER_BLOCK, like, size, keys, values)
            size += values
            if i < len(self.filters):
                block_seed = seed + (2 * i + 1) * SEEDS_PER_BLOCK
                blocks[f"tc{i}"] = temporal_convolution_init(block_seed, like, size, self.filters[i], layers)
                size += layers * self.filters[i]
        logits = dense_init(seed + 2 * len(self.keys) * SEEDS_PER_BLOCK, like, size, ways)
        return {"weights": body_weights(weights), **blocks, "logits": logits, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_episode(self.bn, net, meta, episode)
        logits_QN = self._logits(meta, with_labels(net, z_SD, episode.support.y), z_QD)
        loss = task_loss(logits_QN, episode.query.y)
        return loss, Aux(metrics_of(loss, logits_QN, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> SNAILContext:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return SNAILContext(with_labels(net, z_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: SNAILContext, x: Tensor) -> Tensor:
        return self._logits(meta, adapted.support, net.embed(meta["weights"], x, adapted.stats)[0])

    def _logits(self, meta: Meta, support_SC: Tensor, z_QD: Tensor) -> Tensor:
        past = len(support_SC)
        x_PC = torch.cat([support_SC, pad(z_QD, (0, support_SC.shape[1] - z_QD.shape[1]))])
        for i in range(len(self.keys)):
            x_PC = causal_attention(meta[f"attention{i}"], x_PC, past)
            x_PC = temporal_convolution(meta[f"tc{i}"], x_PC, past) if i < len(self.filters) else x_PC
        return dense(meta["logits"], x_PC[past:])


def with_labels(net: Net, z_SD: Tensor, y_S: Tensor) -> Tensor:
    way_N = torch.arange(net.module.head.out_features, device=y_S.device)  # type: ignore[union-attr, arg-type]
    return torch.cat([z_SD, (y_S.unsqueeze(1) == way_N).to(z_SD.dtype)], dim=1)
