"""Fine-tuning: a classifier of all training classes, all of whose weights are then fitted to the support.

    training:  cross-entropy of h(f(x)) over all training classes, as the Baseline of Chen et al. 2019, arXiv 1904.04232
    test:      w_0 = (f, zero head),  w_k+1 = w_k - SGD step on L(w_k; support),  then h(f(x)) by w_K

Chen et al. keep f fixed. Fitting all weights is the baseline of Dhillon et al. 2020, arXiv 1909.02729, without its
transduction. `Scratch` is the same fit from the net's initial weights: there is no training before the test. At test
there is one output column for each support item, as in protonet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algos.pieces.checks import check_choice, check_counts, check_positive
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.algos.pieces.norm_statistics import (
    BatchNormMode,
    fresh_buffers,
    query_statistics,
    stored_at,
    update_stored,
)
from metarun.algos.pieces.sgd_fit import SGDRule, fit_by_sgd
from metarun.algos.pieces.support_sets import label_members, mask_absent
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, StepIndex, Unroll


class FittedNet(NamedTuple):
    weights: Params
    present: Tensor
    stats: Params


class NetFitConsts(NamedTuple):
    support: Batch
    present: Tensor
    stats: Params


@dataclass(frozen=True)
class FineTune:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "batches"

    fit_steps: int
    fit_batch: int | None  # None: the whole support
    fit_lr: float
    momentum: float
    dampening: float
    weight_decay: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_counts(fit_steps=self.fit_steps, fit_batch=1 if self.fit_batch is None else self.fit_batch)
        check_positive(fit_lr=self.fit_lr)
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        return {"weights": weights, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        x, y = (torch.cat(both) for both in zip(episode.support, episode.query, strict=True))
        logits_BN, used = net(meta["weights"], x)
        loss = task_loss(logits_BN, y)
        buffers = update_stored(meta.get(BUFFERS, {}), 0, used, net.momentum)
        return loss, Aux(metrics_of(loss, logits_BN, y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> FittedNet:
        columns = len(support.y)
        start = {
            name: value.new_zeros(columns, *value.shape[1:]) if name.startswith("head.") else value
            for name, value in meta["weights"].items()
        }
        buffers = meta.get(BUFFERS, {})
        consts = NetFitConsts(support, label_members(support.y).any(dim=1), stored_at(buffers, 0))

        def loss(weights: Params, consts: NetFitConsts, k: StepIndex) -> Tensor:
            rows = self._rows(consts.support, k)
            logits_BS, _ = net(weights, consts.support.x[rows], consts.stats)
            return task_loss(mask_absent(logits_BS, consts.present), consts.support.y[rows])

        rule = SGDRule(self.fit_lr, self.momentum, self.dampening, self.weight_decay)
        weights = fit_by_sgd(loss, start, consts, rule, self.fit_steps, unroll)
        return FittedNet(weights, consts.present, query_statistics(self.bn, net, weights, buffers, support))

    def predict(self, net: Net, meta: Meta, adapted: FittedNet, x: Tensor) -> Tensor:
        return mask_absent(net(adapted.weights, x, adapted.stats)[0], adapted.present)

    def _rows(self, support: Batch, k: StepIndex) -> Tensor:
        seed = torch.zeros((), dtype=torch.int64, device=support.y.device)
        return minibatch_rows(seed, k, len(support.y), self.fit_batch or len(support.y))


@dataclass(frozen=True)
class Scratch(FineTune):
    trains_on: ClassVar[Sampler] = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bn == "running":
            raise ValueError("bn=running: nothing is seen before the test; choose one of batch, support")

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        loss, aux = super().meta_loss(net, meta, episode, step, unroll)
        return 0 * loss, aux
