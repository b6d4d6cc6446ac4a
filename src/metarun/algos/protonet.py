"""Prototypical networks (Snell, Swersky and Zemel 2017, arXiv 1703.05175).

    c_n = mean of f(x) over the support of class n,   p(n | x) = softmax_n(-d(f(x), c_n)),   d = squared Euclidean

There are as many columns as support items, since N cannot be read off shapes: those of absent labels hold the lowest
number there is, so that softmax and argmax pass over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.norm_statistics import fresh_buffers
from metarun.algos.pieces.support_sets import (
    BatchNormMode,
    body,
    embed_support,
    embed_task,
    lowest_where_absent,
    means,
    members,
    unit,
)
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


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
    bn: BatchNormMode

    def __post_init__(self) -> None:
        inner_loop.check_choice("distance", self.distance, ("euclidean", "cosine"))
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        return {"weights": body(weights), **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_task(self.bn, net, meta, episode)
        logits_QS = self._logits(z_QD, *prototypes(z_SD, episode.support.y))
        loss = inner_loop.objective(logits_QS, episode.query.y)
        return loss, Aux(inner_loop.measure(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Prototypes:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return Prototypes(*prototypes(z_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: Prototypes, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return self._logits(z_QD, adapted.centres, adapted.present)

    def _logits(self, z_QD: Tensor, c_SD: Tensor, present_S: Tensor) -> Tensor:
        if self.distance == "cosine":
            logits_QS = unit(z_QD) @ unit(c_SD).T
        else:
            logits_QS = 2 * z_QD @ c_SD.T - z_QD.square().sum(1, keepdim=True) - c_SD.square().sum(1)
        return lowest_where_absent(logits_QS, present_S)


def prototypes(z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each label 0 .. S-1, and whether the label occurs."""
    member_SS = members(y_S)
    return means(z_SD, member_SS), member_SS.any(dim=1)
