"""Prototypical networks (Snell, Swersky and Zemel 2017, arXiv 1703.05175).

    c_n = mean of f(x) over the support of class n,   p(n | x) = softmax_n(-d(f(x), c_n)),   d = squared Euclidean

There are as many columns as support items, since N cannot be read off shapes: those of absent labels hold the lowest
number there is, so that softmax and argmax pass over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.algos import inner_loop
from metarun.models.statistics import fresh_buffers, recall, record
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class Prototypes(NamedTuple):
    centres: Tensor
    present: Tensor
    stats: Params


@dataclass(frozen=True)
class ProtoNet:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "episodes"

    distance: Literal["euclidean", "cosine"]
    bn: Literal["batch", "support", "running"]

    def __post_init__(self) -> None:
        inner_loop.check_choice("distance", self.distance, ("euclidean", "cosine"))
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        body = {name: value for name, value in weights.items() if name.startswith("body.")}
        return {"weights": body, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, seen_first = net.embed(meta["weights"], episode.support.x)
        stats = seen_first if self.bn == "support" else {}
        z_QD, seen_last = net.embed(meta["weights"], episode.query.x, stats)
        logits_QS = self._logits(z_QD, *prototypes(z_SD, episode.support.y))
        loss = inner_loop.objective(logits_QS, episode.query.y)
        buffers = meta.get(BUFFERS, {})
        for seen in (seen_first, seen_last):
            buffers = record(buffers, 0, seen, net.momentum)
        return loss, Aux(inner_loop.measure(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Prototypes:
        stats = recall(meta.get(BUFFERS, {}), 0)
        z_SD, seen = net.embed(meta["weights"], support.x, stats)
        return Prototypes(*prototypes(z_SD, support.y), seen if self.bn == "support" else stats)

    def predict(self, net: Net, meta: Meta, adapted: Prototypes, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return self._logits(z_QD, adapted.centres, adapted.present)

    def _logits(self, z_QD: Tensor, c_SD: Tensor, present_S: Tensor) -> Tensor:
        if self.distance == "cosine":
            logits_QS = unit(z_QD) @ unit(c_SD).T
        else:
            logits_QS = 2 * z_QD @ c_SD.T - z_QD.square().sum(1, keepdim=True) - c_SD.square().sum(1)
        return torch.where(present_S, logits_QS, torch.finfo(logits_QS.dtype).min)


def prototypes(z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each label 0 .. S-1, and whether the label occurs."""
    member_SS = (torch.arange(len(y_S), device=y_S.device).unsqueeze(1) == y_S).to(z_SD.dtype)
    count_S = member_SS.sum(dim=1)
    return member_SS @ z_SD / count_S.clamp(min=1).unsqueeze(1), count_S > 0


def unit(z_BD: Tensor) -> Tensor:
    length_B1: Tensor = torch.linalg.vector_norm(z_BD, dim=1, keepdim=True)
    return z_BD / (length_B1 + 1e-8)
