"""R2-D2: ridge regression for a head, in closed form (Bertinetto, Henriques, Torr and Vedaldi 2019, arXiv 1805.08136).

    W = argmin |Z W - Y|^2 + lambda |W|^2 = Z' (Z Z' + lambda I)^-1 Y,   logits = alpha * z(x) W

Y is one-hot; Z and z(x) have a last column of ones, as in the released code. The system has S equations, whatever the
size of the embeddings. lambda = ridge * exp(l); l and alpha are learned. The paper's beta, one number added to all
logits, is left out: softmax is invariant to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.algos.pieces.checks import check_choice, check_positive
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers
from metarun.algos.pieces.support_sets import embed_episode, embed_support, label_members, mask_absent
from metarun.algos.pieces.weights import body_weights
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class RidgeHead(NamedTuple):
    W: Tensor  # [D + 1, N]
    present: Tensor
    stats: Params


@dataclass(frozen=True)
class R2D2:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "episodes"

    ridge: float
    scale: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_positive(ridge=self.ridge, scale=self.scale)
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like = next(iter(weights.values()))
        solver = {"l": like.new_zeros(()), "alpha": like.new_full((), self.scale)}
        return {"weights": body_weights(weights), "solver": solver, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_episode(self.bn, net, meta, episode)
        logits_QN = ridge_logits(meta, z_QD, *self._solve(meta, z_SD, episode.support.y))
        loss = task_loss(logits_QN, episode.query.y)
        return loss, Aux(metrics_of(loss, logits_QN, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> RidgeHead:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return RidgeHead(*self._solve(meta, z_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: RidgeHead, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return ridge_logits(meta, z_QD, adapted.W, adapted.present)

    def _solve(self, meta: Meta, z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
        Z_SE, member_NS = append_ones(z_SD), label_members(y_S)
        ridge_SS = self.ridge * meta["solver"]["l"].exp() * torch.eye(len(y_S), dtype=z_SD.dtype, device=z_SD.device)
        W_EN = Z_SE.T @ torch.linalg.solve(Z_SE @ Z_SE.T + ridge_SS, member_NS.T.to(z_SD.dtype))
        return W_EN, member_NS.any(dim=1)


def ridge_logits(meta: Meta, z_QD: Tensor, W_EN: Tensor, present_N: Tensor) -> Tensor:
    return mask_absent(meta["solver"]["alpha"] * append_ones(z_QD) @ W_EN, present_N)


def append_ones(z_BD: Tensor) -> Tensor:
    return pad(z_BD, (0, 1), value=1.0)
