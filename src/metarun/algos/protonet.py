"""Prototypical networks (Snell, Swersky and Zemel 2017, arXiv 1703.05175).

    c_n = mean of f(x) over the support of class n,   p(n | x) = softmax_n(-d(f(x), c_n)),   d = squared Euclidean

There is one output column for each support item, since N cannot be read off tensor shapes. Columns of absent labels
hold the lowest number of the type, so that softmax and argmax ignore them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from metarun.algos.pieces.checks import check_choice
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers
from metarun.algos.pieces.support_sets import (
    embed_episode,
    embed_support,
    label_means,
    label_members,
    mask_absent,
    unit_rows,
)
from metarun.algos.pieces.weights import body_weights
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
        check_choice("distance", self.distance, ("euclidean", "cosine"))
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        return {"weights": body_weights(weights), **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_episode(self.bn, net, meta, episode)
        logits_QS = self._logits(z_QD, *prototypes(z_SD, episode.support.y))
        loss = task_loss(logits_QS, episode.query.y)
        return loss, Aux(metrics_of(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Prototypes:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return Prototypes(*prototypes(z_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: Prototypes, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return self._logits(z_QD, adapted.centres, adapted.present)

    def _logits(self, z_QD: Tensor, c_SD: Tensor, present_S: Tensor) -> Tensor:
        if self.distance == "cosine":
            logits_QS = unit_rows(z_QD) @ unit_rows(c_SD).T
        else:
            logits_QS = 2 * z_QD @ c_SD.T - z_QD.square().sum(1, keepdim=True) - c_SD.square().sum(1)
        return mask_absent(logits_QS, present_S)


def prototypes(z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each label 0 .. S-1, and whether the label occurs."""
    member_SS = label_members(y_S)
    return label_means(z_SD, member_SS), member_SS.any(dim=1)
