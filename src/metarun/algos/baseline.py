"""Baseline and Baseline++ of "A closer look at few-shot classification" (Chen et al. 2019, arXiv 1904.04232).

    training:  cross-entropy of h(f(x)) over all training classes, f and h learned together
    test:      f as it is, and a new h fitted to the support by stochastic gradient descent, then h(f(x))

    Baseline    h(z)_n = scale * (w_n . z + b_n)            head: linear, scale 1
    Baseline++  h(z)_n = scale * w_n . z / (|w_n| |z|)      head: cosine

A linear head starts its fit at zero, a cosine head at the mean embedding of each class, for zero has no direction; in
the paper both start at random. An "episode" in training is a batch of single images with one set of statistics, its
cut into support and query means nothing. At test there are as many columns as support items, as in protonet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.dense_lstm import generator, uniform
from metarun.algos.pieces.norm_statistics import fresh_buffers, recall, record
from metarun.algos.pieces.sgd_fit import SGD, fit
from metarun.algos.pieces.support_sets import BatchNormMode, body, lowest_where_absent, means, members, unit
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class Head(NamedTuple):
    weights: Params
    present: Tensor
    stats: Params


class Given(NamedTuple):
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
        inner_loop.check_choice("head", self.head, ("linear", "cosine"))
        inner_loop.check_steps(fit_steps=self.fit_steps, fit_batch=self.fit_batch)
        for name in ("scale", "fit_scale", "fit_lr"):
            inner_loop.check_rate(name, getattr(self, name))
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        buffers = fresh_buffers(self.bn, net, 0)
        if self.head == "linear":
            return {"weights": weights, **buffers}
        like = weights["head.weight"]
        drawn = uniform(generator(seed), like, like.shape[1] ** -0.5, *like.shape)  # the net's is zero
        return {"weights": {**body(weights), "head.weight": drawn}, **buffers}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        x, y = (torch.cat(both) for both in zip(episode.support, episode.query, strict=True))
        z_BD, seen = net.embed(meta["weights"], x)
        logits_BN = self._logits(meta["weights"], z_BD, self.scale)
        loss = inner_loop.objective(logits_BN, y)
        buffers = record(meta.get(BUFFERS, {}), 0, seen, net.momentum)
        return loss, Aux(inner_loop.measure(loss, logits_BN, y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Head:
        stats = recall(meta.get(BUFFERS, {}), 0)
        z_SD, seen = net.embed(meta["weights"], support.x, stats)
        start = {"head.weight": means(z_SD, members(support.y))}
        if self.head == "linear":
            start = {"head.weight": torch.zeros_like(z_SD), "head.bias": torch.zeros_like(z_SD[:, 0])}
        given = Given(z_SD, support.y, members(support.y).any(dim=1))
        rule = SGD(self.fit_lr, self.momentum, self.dampening, self.weight_decay)
        weights = fit(self._fit_loss, start, given, rule, self.fit_steps, unroll)
        return Head(weights, given.present, seen if self.bn == "support" else stats)

    def predict(self, net: Net, meta: Meta, adapted: Head, x: Tensor) -> Tensor:
        z_QD, _ = net.embed(meta["weights"], x, adapted.stats)
        return lowest_where_absent(self._logits(adapted.weights, z_QD, self.fit_scale), adapted.present)

    def _fit_loss(self, weights: Params, given: Given, k: Any) -> Tensor:
        alike = torch.zeros((), dtype=torch.int64, device=given.y.device)
        rows = inner_loop.minibatch(alike, k, len(given.y), self.fit_batch)
        logits_BS = lowest_where_absent(self._logits(weights, given.z[rows], self.fit_scale), given.present)
        return inner_loop.objective(logits_BS, given.y[rows])

    def _logits(self, weights: Params, z_BD: Tensor, scale: float) -> Tensor:
        if self.head == "linear":
            return scale * linear(z_BD, weights["head.weight"], weights.get("head.bias"))
        return scale * linear(unit(z_BD), unit(weights["head.weight"]))
