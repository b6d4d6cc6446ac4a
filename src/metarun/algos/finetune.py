"""Fine-tuning: a classifier of all training classes, of which every weight is then fitted to the support.

    training:  cross-entropy of h(f(x)) over all training classes, as the Baseline of Chen et al. 2019, arXiv 1904.04232
    test:      w_0 = (f, zero head),  w_k+1 = w_k - SGD step on L(w_k; support),  then h(f(x)) by w_K

Chen et al. keep f fixed; that all weights move is the baseline of Dhillon et al. 2020, arXiv 1909.02729, without
transduction. `Scratch` is the same fit from the net's first weights, so that nothing is learned before the test.
At test there are as many columns as support items, as in protonet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.norm_statistics import fresh_buffers, recall, record
from metarun.algos.pieces.sgd_fit import SGD, fit
from metarun.algos.pieces.support_sets import BatchNormMode, lowest_where_absent, members
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class Fitted(NamedTuple):
    weights: Params
    present: Tensor
    stats: Params


class Given(NamedTuple):
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
        inner_loop.check_steps(fit_steps=self.fit_steps, fit_batch=1 if self.fit_batch is None else self.fit_batch)
        inner_loop.check_rate("fit_lr", self.fit_lr)
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        return {"weights": weights, **fresh_buffers(self.bn, net, 0)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        x, y = (torch.cat(both) for both in zip(episode.support, episode.query, strict=True))
        logits_BN, seen = net(meta["weights"], x)
        loss = inner_loop.objective(logits_BN, y)
        buffers = record(meta.get(BUFFERS, {}), 0, seen, net.momentum)
        return loss, Aux(inner_loop.measure(loss, logits_BN, y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Fitted:
        columns = len(support.y)
        start = {
            name: value.new_zeros(columns, *value.shape[1:]) if name.startswith("head.") else value
            for name, value in meta["weights"].items()
        }
        buffers = meta.get(BUFFERS, {})
        given = Given(support, members(support.y).any(dim=1), recall(buffers, 0))

        def loss(weights: Params, given: Given, k: Any) -> Tensor:
            rows = self._rows(given.support, k)
            logits_BS, _ = net(weights, given.support.x[rows], given.stats)
            return inner_loop.objective(lowest_where_absent(logits_BS, given.present), given.support.y[rows])

        rule = SGD(self.fit_lr, self.momentum, self.dampening, self.weight_decay)
        weights = fit(loss, start, given, rule, self.fit_steps, unroll)
        return Fitted(weights, given.present, inner_loop.final_stats(self.bn, net, weights, buffers, support))

    def predict(self, net: Net, meta: Meta, adapted: Fitted, x: Tensor) -> Tensor:
        return lowest_where_absent(net(adapted.weights, x, adapted.stats)[0], adapted.present)

    def _rows(self, support: Batch, k: Any) -> Tensor:
        alike = torch.zeros((), dtype=torch.int64, device=support.y.device)
        return inner_loop.minibatch(alike, k, len(support.y), self.fit_batch or len(support.y))


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
