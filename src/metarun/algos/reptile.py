"""Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999).

    w_0 = theta,   w_k+1 = w_k - U(grad L(w_k; batch k)),   theta <- theta + epsilon * mean over tasks (w_K - theta)

The meta-loss is a surrogate, sum(theta * constant(theta - w_K)): its gradient is the update, its value means nothing,
and epsilon is the outer rate. Mini-batches come from support and query together in training, from the support at test.
Its logged loss and accuracy are therefore of queries the adapted weights were trained on; validation has its own.
U is plain, or Adam with beta_1 = 0 as in the paper; unlike there, its second moment starts anew in each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.norm_statistics import RECALL, RECORD, Statistics, fresh_buffers
from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll

BETA_2, EPSILON = 0.999, 1e-8  # Adam's own


class Inner(NamedTuple):
    weights: Params
    squares: Params
    stats: Params


class Given(NamedTuple):
    data: Batch
    seed: Tensor


@dataclass(frozen=True)
class Reptile:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    steps: int
    test_steps: int
    inner_lr: float
    inner_batch: int | None  # None: all there is
    test_batch: int | None
    inner_optim: Literal["sgd", "adam"]
    bn: Literal["batch", "support", "running"]

    def __post_init__(self) -> None:
        inner_loop.check_steps(steps=self.steps, test_steps=self.test_steps)
        inner_loop.check_rate("inner_lr", self.inner_lr)
        for name, size in (("inner_batch", self.inner_batch), ("test_batch", self.test_batch)):
            inner_loop.check_steps(**{name: 1 if size is None else size})
        inner_loop.check_choice("inner_optim", self.inner_optim, ("sgd", "adam"))
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        return {"weights": weights, **fresh_buffers(self.bn, net, self.steps)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        data = Batch(*(torch.cat(both) for both in zip(episode.support, episode.query, strict=True)))
        given = Given(data, episode.index)
        task = self._descend(net, meta, given, self.steps, self.inner_batch, RECORD, unroll)
        surrogate = sum((w * (w.detach() - task.weights[name])).sum() for name, w in meta["weights"].items())
        assert isinstance(surrogate, Tensor)
        out, _ = inner_loop.scored(self.bn, net, task.weights, episode.support, episode.query.x)
        loss = inner_loop.objective(out, episode.query.y)
        return surrogate, Aux(inner_loop.measure(loss, out, episode.query.y), task.stats)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        given = Given(support, torch.zeros((), dtype=torch.int64, device=support.x.device))
        task = self._descend(net, meta, given, self.test_steps, self.test_batch, RECALL, unroll)
        return Adapted(task.weights, inner_loop.final_stats(self.bn, net, task.weights, task.stats, support))

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]

    def _descend(
        self,
        net: Net,
        meta: Meta,
        given: Given,
        num_steps: int,
        size: int | None,
        statistics: Statistics,
        unroll: Unroll,
    ) -> Inner:
        theta = inner_loop.detached(meta["weights"])
        squares = {name: torch.zeros_like(value) for name, value in theta.items()}
        step = partial(self._step, net, size or len(given.data.x), statistics)
        end: Inner = unroll(step, Inner(theta, squares, meta.get(BUFFERS, {})), given, num_steps)
        return end

    def _step(self, net: Net, size: int, statistics: Statistics, carry: Inner, given: Given, k: Any) -> Inner:
        rows = inner_loop.minibatch(given.seed, k, len(given.data.x), size)
        x, y = given.data.x[rows], given.data.y[rows]

        def inner_loss(weights: Params) -> tuple[Tensor, Params]:
            out, seen = net(weights, x, statistics.use(carry.stats, k))
            return inner_loop.objective(out, y), seen

        move, seen = grad(inner_loss, has_aux=True)(carry.weights)
        squares = carry.squares
        if self.inner_optim == "adam":
            squares = {name: torch.lerp(move[name].square(), v, BETA_2) for name, v in squares.items()}
            unbias = 1 - BETA_2 ** (k.double() + 1 if isinstance(k, Tensor) else k + 1)
            move = {name: g / ((squares[name] / unbias).sqrt() + EPSILON) for name, g in move.items()}
        weights = {name: w - self.inner_lr * move[name] for name, w in carry.weights.items()}
        return Inner(weights, squares, statistics.keep(carry.stats, k, seen, net.momentum))
