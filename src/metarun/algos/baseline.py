"""Baseline and Baseline++ of "A closer look at few-shot classification" (Chen et al. 2019, arXiv 1904.04232).

    training:  cross-entropy of h(f(x)) over all training classes, f and h learned together
    test:      f is fixed, and a new h is fitted to the support by stochastic gradient descent, then h(f(x))

    Baseline    h(z)_n = scale * (w_n . z + b_n)            head: linear, scale 1
    Baseline++  h(z)_n = scale * w_n . z / (|w_n| |z|)      head: cosine

The fit of a linear head starts at zero, that of a cosine head at the mean embedding of each class, since zero has no
direction; in the paper both start at random. In training an "episode" is a batch of single images with one set of
statistics, and its cut into support and query means nothing. At test there is one output column for each support item,
as in protonet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from metarun.algos.pieces.checks import check_choice, check_counts, check_positive
from metarun.algos.pieces.dense_lstm import seeded_generator, uniform_like
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers, stored_at, update_stored
from metarun.algos.pieces.sgd_fit import SGDRule, fit_by_sgd
from metarun.algos.pieces.support_sets import label_means, label_members, mask_absent, unit_rows
from metarun.algos.pieces.weights import body_weights
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, StepIndex, Unroll


class FittedHead(NamedTuple):
    weights: Params
    present: Tensor
    stats: Params


class HeadFitConsts(NamedTuple):
    z: Tensor
    y: Tensor
    present: Tensor


@dataclass(frozen=True)
class Baseline:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "batches"

    head: Literal["linear", "cosine"]
    scale: float
    fit_scale: float
    fit_steps: int
    fit_batch: int
    fit_lr: float
    momentum: float
    dampening: float
    weight_decay: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_choice("head", self.head, ("linear", "cosine"))
        check_counts(fit_steps=self.fit_steps, fit_batch=self.fit_batch)
        check_positive(scale=self.scale, fit_scale=self.fit_scale, fit_lr=self.fit_lr)
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        buffers = fresh_buffers(self.bn, net, 0)
        if self.head == "linear":
            return {"weights": weights, **buffers}
        like = weights["head.weight"]
        # The net's own head is zero, which has no direction.
        drawn = uniform_like(seeded_generator(seed), like, like.shape[1] ** -0.5, *like.shape)
        return {"weights": {**body_weights(weights), "head.weight": drawn}, **buffers}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        x, y = (torch.cat(both) for both in zip(episode.support, episode.query, strict=True))
        z_BD, used = net.embed(meta["weights"], x)
        logits_BN = self._logits(meta["weights"], z_BD, self.scale)
        loss = task_loss(logits_BN, y)
        buffers = update_stored(meta.get(BUFFERS, {}), 0, used, net.momentum)
        return loss, Aux(metrics_of(loss, logits_BN, y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> FittedHead:
        stats = stored_at(meta.get(BUFFERS, {}), 0)
        z_SD, used = net.embed(meta["weights"], support.x, stats)
        start = {"head.weight": label_means(z_SD, label_members(support.y))}
        if self.head == "linear":
            start = {"head.weight": torch.zeros_like(z_SD), "head.bias": torch.zeros_like(z_SD[:, 0])}
        consts = HeadFitConsts(z_SD, support.y, label_members(support.y).any(dim=1))
        rule = SGDRule(self.fit_lr, self.momentum, self.dampening, self.weight_decay)
        weights = fit_by_sgd(self._fit_loss, start, consts, rule, self.fit_steps, unroll)
        return FittedHead(weights, consts.present, used if self.bn == "support" else stats)

    def predict(self, net: Net, meta: Meta, adapted: FittedHead, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return mask_absent(self._logits(adapted.weights, z_QD, self.fit_scale), adapted.present)

    def _fit_loss(self, weights: Params, consts: HeadFitConsts, k: StepIndex) -> Tensor:
        seed = torch.zeros((), dtype=torch.int64, device=consts.y.device)
        rows = minibatch_rows(seed, k, len(consts.y), self.fit_batch)
        logits_BS = mask_absent(self._logits(weights, consts.z[rows], self.fit_scale), consts.present)
        return task_loss(logits_BS, consts.y[rows])

    def _logits(self, weights: Params, z_BD: Tensor, scale: float) -> Tensor:
        if self.head == "linear":
            return scale * linear(z_BD, weights["head.weight"], weights.get("head.bias"))
        return scale * linear(unit_rows(z_BD), unit_rows(weights["head.weight"]))
