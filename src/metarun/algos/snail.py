"""SNAIL, the simple neural attentive learner (Mishra, Rohaninejad, Chen and Abbeel 2018, arXiv 1707.03141).

    x_t = (f(image_t), one-hot label_t),   t = 1 .. S the support, S + 1 the query, whose label is zeros
    Attention, TC, Attention, TC, Attention, and a linear layer whose output at S + 1 is the logits

TC is a stack of dense blocks of causal convolutions, dilated by 1, 2, 4 .. until the last item of N * shots + 1 sees
the first; attention sees all that came before. Nothing is adapted but what the sequence leaves in the activations. The
sequence is read in the order of the support, class by class, and other shots at test make it longer than in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.dense_lstm import dense, dense_init
from metarun.algos.pieces.norm_statistics import fresh_buffers
from metarun.algos.pieces.snail_blocks import attention, attention_init, num_layers, tc, tc_init
from metarun.algos.pieces.support_sets import BatchNormMode, body, embed_support, embed_task
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll

BLOCK = 100  # seeds set aside for each block


class Read(NamedTuple):
    support: Tensor  # embeddings and labels
    stats: Params


@dataclass(frozen=True)
class SNAIL:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    shots: int  # with the ways of the head, the length that the dilations must reach over
    keys: tuple[int, int, int]
    values: tuple[int, int, int]
    filters: tuple[int, int]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        inner_loop.check_steps(
            shots=self.shots, keys=min(self.keys), values=min(self.values), filters=min(self.filters)
        )
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like = weights["head.weight"]
        ways, size = like.shape
        layers = num_layers(ways * self.shots + 1)
        blocks: Meta = {}
        size += ways
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            blocks[f"attention{i}"] = attention_init(seed + 2 * i * BLOCK, like, size, keys, values)
            size += values
            if i < len(self.filters):
                blocks[f"tc{i}"] = tc_init(seed + (2 * i + 1) * BLOCK, like, size, self.filters[i], layers)
                size += layers * self.filters[i]
        logits = dense_init(seed + 2 * len(self.keys) * BLOCK, like, size, ways)
        return {"weights": body(weights), **blocks, "logits": logits, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_task(self.bn, net, meta, episode)
        logits_QN = self._logits(meta, labelled(net, z_SD, episode.support.y), z_QD)
        loss = inner_loop.objective(logits_QN, episode.query.y)
        return loss, Aux(inner_loop.measure(loss, logits_QN, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Read:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return Read(labelled(net, z_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: Read, x: Tensor) -> Tensor:
        return self._logits(meta, adapted.support, net.embed(meta["weights"], x, adapted.stats)[0])

    def _logits(self, meta: Meta, support_SC: Tensor, z_QD: Tensor) -> Tensor:
        past = len(support_SC)
        x_PC = torch.cat([support_SC, pad(z_QD, (0, support_SC.shape[1] - z_QD.shape[1]))])
        for i in range(len(self.keys)):
            x_PC = attention(meta[f"attention{i}"], x_PC, past)
            x_PC = tc(meta[f"tc{i}"], x_PC, past) if i < len(self.filters) else x_PC
        return dense(meta["logits"], x_PC[past:])


def labelled(net: Net, z_SD: Tensor, y_S: Tensor) -> Tensor:
    way_N = torch.arange(net.module.head.out_features, device=y_S.device)  # type: ignore[union-attr, arg-type]
    return torch.cat([z_SD, (y_S.unsqueeze(1) == way_N).to(z_SD.dtype)], dim=1)
