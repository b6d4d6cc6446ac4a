"""Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999).

    w_0 = theta,   w_k+1 = w_k - U(grad L(w_k; batch k)),   theta <- theta + epsilon * mean over tasks (w_K - theta)

The meta-loss is a surrogate, sum(theta * detached(theta - w_K)): its gradient is the update, its value has no meaning,
and epsilon is the outer rate. Mini-batches are drawn from support and query together in training, from the support at
test. The logged training loss and accuracy are therefore of queries that the weights were trained on; validation has
its own. U is plain gradient descent, or Adam with beta_1 = 0 as in the paper; unlike there, its second moment starts
anew in each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from metarun.algos.pieces.checks import check_choice, check_counts, check_positive
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.algos.pieces.norm_statistics import (
    UPDATE_STORED,
    USE_STORED,
    BatchNormMode,
    NormPolicy,
    fresh_buffers,
    query_outputs,
    query_statistics,
)
from metarun.algos.pieces.weights import detached
from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, StepIndex, Unroll

BETA_2, ADAM_EPS = 0.999, 1e-8  # Adam's own


class ReptileCarry(NamedTuple):
    weights: Params
    squares: Params  # Adam's second moment
    stats: Params


class ReptileConsts(NamedTuple):
    data: Batch
    seed: Tensor  # of the order of mini-batches


@dataclass(frozen=True)
class Reptile:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    steps: int
    test_steps: int
    inner_lr: float
    inner_batch: int | None  # None: all items
    test_batch: int | None
    inner_optim: Literal["sgd", "adam"]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, test_steps=self.test_steps)
        check_positive(inner_lr=self.inner_lr)
        check_counts(inner_batch=1 if self.inner_batch is None else self.inner_batch)
        check_counts(test_batch=1 if self.test_batch is None else self.test_batch)
        check_choice("inner_optim", self.inner_optim, ("sgd", "adam"))
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        return {"weights": weights, **fresh_buffers(self.bn, net, self.steps)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        data = Batch(*(torch.cat(both) for both in zip(episode.support, episode.query, strict=True)))
        consts = ReptileConsts(data, episode.index)
        end = self._descend(net, meta, consts, self.steps, self.inner_batch, UPDATE_STORED, unroll)
        surrogate = sum((w * (w.detach() - end.weights[name])).sum() for name, w in meta["weights"].items())
        assert isinstance(surrogate, Tensor)
        outputs, _ = query_outputs(self.bn, net, end.weights, episode.support, episode.query.x)
        loss = task_loss(outputs, episode.query.y)
        return surrogate, Aux(metrics_of(loss, outputs, episode.query.y), end.stats)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        consts = ReptileConsts(support, torch.zeros((), dtype=torch.int64, device=support.x.device))
        end = self._descend(net, meta, consts, self.test_steps, self.test_batch, USE_STORED, unroll)
        return Adapted(end.weights, query_statistics(self.bn, net, end.weights, end.stats, support))

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]

    def _descend(
        self,
        net: Net,
        meta: Meta,
        consts: ReptileConsts,
        num_steps: int,
        size: int | None,
        norms: NormPolicy,
        unroll: Unroll,
    ) -> ReptileCarry:
        theta = detached(meta["weights"])
        squares = {name: torch.zeros_like(value) for name, value in theta.items()}
        step = partial(self._step, net, size or len(consts.data.x), norms)
        return unroll(step, ReptileCarry(theta, squares, meta.get(BUFFERS, {})), consts, num_steps)

    def _step(
        self, net: Net, size: int, norms: NormPolicy, carry: ReptileCarry, consts: ReptileConsts, k: StepIndex
    ) -> ReptileCarry:
        rows = minibatch_rows(consts.seed, k, len(consts.data.x), size)
        x, y = consts.data.x[rows], consts.data.y[rows]

        def inner_loss(weights: Params) -> tuple[Tensor, Params]:
            outputs, used = net(weights, x, norms.normalise_with(carry.stats, k))
            return task_loss(outputs, y), used

        update, used = grad(inner_loss, has_aux=True)(carry.weights)
        squares = carry.squares
        if self.inner_optim == "adam":
            squares = {name: torch.lerp(update[name].square(), v, BETA_2) for name, v in squares.items()}
            unbias = 1 - BETA_2 ** (k.double() + 1 if isinstance(k, Tensor) else k + 1)
            update = {name: g / ((squares[name] / unbias).sqrt() + ADAM_EPS) for name, g in update.items()}
        weights = {name: w - self.inner_lr * update[name] for name, w in carry.weights.items()}
        return ReptileCarry(weights, squares, norms.updated(carry.stats, k, used, net.momentum))
