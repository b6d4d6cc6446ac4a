"""MetaOptNet: a linear support vector machine for a head (Lee, Maji, Ravichandran and Soatto 2019, arXiv 1904.03758).

The machine is the multi-class one of Crammer and Singer (2001), solved in its dual, a quadratic program in alpha_sn:

    min 1/2 sum_n |w_n|^2 - sum_s alpha_s,y_s   subject to   alpha_sn <= C [y_s = n],   sum_n alpha_sn = 0

    w_n = sum_s alpha_sn z_s,   logits_n = gamma * w_n . z(x)

with a learned gamma. The gradient passes through the solution (pieces/quadratic_program.py). Columns of absent labels
are independent programs whose solution is zero, so that any number of ways can be tested. The loss is cross-entropy
against targets 1 - eps for the true class and eps / (N - 1) for each other (section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algos.pieces.checks import check_choice, check_counts, check_positive
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers
from metarun.algos.pieces.quadratic_program import QuadraticProgram, solve_quadratic_program
from metarun.algos.pieces.support_sets import embed_episode, embed_support, label_members, mask_absent
from metarun.algos.pieces.weights import body_weights
from metarun.types import Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class SVMHead(NamedTuple):
    w: Tensor
    present: Tensor
    stats: Params


@dataclass(frozen=True)
class MetaOptNet:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "episodes"

    C: float
    qp_steps: int
    scale: float
    smoothing: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_positive(C=self.C, scale=self.scale)
        check_counts(qp_steps=self.qp_steps)
        check_choice("bn", self.bn, ("batch", "support", "running"))
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing}: is a share of 1; use 0.0 for none")

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        gamma = next(iter(weights.values())).new_full((), self.scale)
        return {"weights": body_weights(weights), "solver": {"gamma": gamma}, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        z_SD, z_QD, buffers = embed_episode(self.bn, net, meta, episode)
        w_ND, present_N = self._solve(z_SD, episode.support.y)
        logits_QN = svm_logits(meta, z_QD, w_ND, present_N)
        loss = self._loss(logits_QN, present_N, episode.query.y)
        return loss, Aux(metrics_of(loss, logits_QN, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> SVMHead:
        z_SD, stats = embed_support(self.bn, net, meta, support.x)
        return SVMHead(*self._solve(z_SD, support.y), stats)

    def predict(self, net: Net, meta: Meta, adapted: SVMHead, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return svm_logits(meta, z_QD, adapted.w, adapted.present)

    def _solve(self, z_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
        member_NS = label_members(y_S)
        present_N = member_NS.any(dim=1)
        # With fewer features than items Z Z' is singular, and in float32 rounding would make it indefinite.
        program = dual_program(z_SD.double(), member_NS, present_N, self.C)
        alpha_NS = self.C * solve_quadratic_program(program, self.qp_steps)
        return alpha_NS.to(z_SD.dtype) @ z_SD, present_N

    def _loss(self, logits_QN: Tensor, present_N: Tensor, y_Q: Tensor) -> Tensor:
        if self.smoothing == 0:
            return task_loss(logits_QN, y_Q)
        right_QN = y_Q.unsqueeze(1) == torch.arange(len(present_N), device=y_Q.device)
        target_QN = torch.where(right_QN, 1 - self.smoothing, self.smoothing / (present_N.sum() - 1))
        return -torch.where(present_N, target_QN * logits_QN.log_softmax(dim=1), 0).sum(dim=1).mean()


def dual_program(z_SD: Tensor, member_NS: Tensor, present_N: Tensor, C: float) -> QuadraticProgram:
    """One block for each label, in alpha / C. That of an absent label is min |a|^2 / 2 with a <= 1, not coupled."""
    own_NS = member_NS.to(z_SD.dtype)
    eye_SS = torch.eye(len(z_SD), dtype=z_SD.dtype, device=z_SD.device)
    block_N11 = present_N.reshape(-1, 1, 1)
    return QuadraticProgram(
        Q=torch.where(block_N11, C * z_SD @ z_SD.T, eye_SS),
        p=-own_NS,
        G=eye_SS.expand(len(present_N), -1, -1),
        h=torch.where(present_N.unsqueeze(1), own_NS, 1),
        A=block_N11 * eye_SS,
        b=torch.zeros_like(z_SD[:, 0]),
    )


def svm_logits(meta: Meta, z_QD: Tensor, w_ND: Tensor, present_N: Tensor) -> Tensor:
    return mask_absent(meta["solver"]["gamma"] * z_QD @ w_ND.T, present_N)
