"""Gradient descent on a task's support set, and the book-keeping of its normalisation statistics.

w_k+1 = w_k - rates * grad L(w_k; support), over the weights whose names match `adapt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy, linear, mse_loss
from torch.utils._pytree import tree_map

from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Meta, Net, Params, Unroll

Order = Literal["first", "second"]
Reduction = Literal["mean", "sum_over_ways"]
BatchNormMode = Literal["batch", "support", "running", "per_step"]


class Rule(Protocol):
    """The fields by which an inner loop is done."""

    @property
    def steps(self) -> int: ...
    @property
    def test_steps(self) -> int: ...
    @property
    def order(self) -> Order: ...
    @property
    def loss_reduction(self) -> Reduction: ...
    @property
    def adapt(self) -> tuple[str, ...]: ...
    @property
    def bn(self) -> BatchNormMode: ...


class Carry(NamedTuple):
    weights: Params
    stats: Params


class Given(NamedTuple):
    support: Batch
    frozen: Params
    rates: Params
    seen: Params  # the statistics of a body that does not adapt


class Statistics(NamedTuple):
    """Which statistics a pass normalises with (none: its own), and what is kept of those it used."""

    use: Callable[[Params, Any], Params]
    keep: Callable[[Params, Any, Params, float], Params]


Forward = Callable[[Params, Given, Params], tuple[Tensor, Params]]


def descend(
    rule: Rule,
    net: Net,
    meta: Meta,
    rates: Params,
    support: Batch,
    num_steps: int,
    statistics: Statistics,
    unroll: Unroll,
) -> Carry:
    weights = meta["weights"]
    adapted = {name: weights[name] for name in rates}
    frozen = {name: value for name, value in weights.items() if name not in rates}
    start = Carry(adapted, meta.get(BUFFERS, {}))
    forward: Forward = partial(_whole, net)
    given = Given(support, frozen, rates, {})
    if rule.bn != "per_step" and all(name.startswith("head.") for name in rates):
        # The body is the same at every step: one pass serves them all.
        z, seen = net.embed(weights, support.x, statistics.use(start.stats, 0))
        forward, given = _head, Given(Batch(z, support.y), frozen, rates, seen)
    end = unroll(partial(_step, rule, forward, statistics, net.momentum), start, given, num_steps)
    return Carry({**weights, **end.weights}, end.stats)


def _whole(net: Net, weights: Params, given: Given, stats: Params) -> tuple[Tensor, Params]:
    return net(weights, given.support.x, stats)


def _head(weights: Params, given: Given, _stats: Params) -> tuple[Tensor, Params]:
    return linear(given.support.x, weights["head.weight"], weights.get("head.bias")), given.seen


def _step(
    rule: Rule, forward: Forward, statistics: Statistics, momentum: float, carry: Carry, given: Given, k: Any
) -> Carry:
    def inner_loss(adapted: Params, given: Given) -> tuple[Tensor, Params]:
        out, seen = forward({**given.frozen, **adapted}, given, statistics.use(carry.stats, k))
        scale = out.shape[-1] if rule.loss_reduction == "sum_over_ways" else 1
        return scale * objective(out, given.support.y), seen

    at = (carry.weights, given)
    if rule.order == "first":
        at = tree_map(torch.detach, at)
    gradient, seen = grad(inner_loss, has_aux=True)(*at)
    weights = {name: value - given.rates[name] * gradient[name] for name, value in carry.weights.items()}
    return Carry(weights, statistics.keep(carry.stats, k, seen, momentum))


def query_loss(rule: Rule, net: Net, task: Carry, episode: Episode) -> tuple[Tensor, Aux]:
    """The loss of the adapted weights on the query set; the statistics seen there are the last to be recorded."""
    stats = net(task.weights, episode.support.x)[1] if rule.bn == "support" else {}
    out, seen = net(task.weights, episode.query.x, stats)
    loss = objective(out, episode.query.y)
    return loss, Aux(measure(loss, out, episode.query.y), record(task.stats, rule.steps, seen, net.momentum))


def predictor(bn: BatchNormMode, net: Net, task: Carry, support: Batch) -> Adapted:
    if bn == "support":
        return Adapted(task.weights, net(task.weights, support.x)[1])
    return Adapted(task.weights, {name: rows[-1] for name, rows in task.stats.items()})


def objective(out: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        assert out.shape == y.shape, f"outputs {tuple(out.shape)} for targets {tuple(y.shape)}"
        return mse_loss(out, y)
    return cross_entropy(out, y)


def measure(loss: Tensor, out: Tensor, y: Tensor) -> dict[str, Tensor]:
    if y.is_floating_point():
        return {"loss": loss.detach()}
    return {"loss": loss.detach(), "acc": (out.detach().argmax(dim=-1) == y).to(out.dtype).mean()}


def detached(params: Params) -> Params:
    return {name: value.detach() for name, value in params.items()}


def matching(weights: Mapping[str, Tensor], patterns: tuple[str, ...]) -> Params:
    chosen = {name: value for name, value in weights.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        raise ValueError(f"adapt={list(patterns)}: matches no parameter; their names begin with body. and head.")
    return chosen


def fresh_buffers(bn: BatchNormMode, net: Net, steps: int) -> Meta:
    """Statistics as rows: one for all passes, or one for each inner step and a last one for the query."""
    if bn not in ("running", "per_step"):
        return {}
    rows = steps + 1 if bn == "per_step" else 1
    return {BUFFERS: {name: value.repeat(rows, 1) for name, value in net.init_stats().items()}}


def recall(stats: Params, k: Any) -> Params:
    return {name: torch.where(_row(rows, k), rows, 0).sum(dim=0) for name, rows in stats.items()}


def record(stats: Params, k: Any, seen: Params, momentum: float) -> Params:
    """The running average of row k moved towards what was seen; a mask, since k may be a tensor of a compiled loop."""
    return {
        name: torch.where(_row(rows, k), torch.lerp(rows, seen[name].detach(), momentum), rows)
        for name, rows in stats.items()
    }


def _row(rows: Tensor, k: Any) -> Tensor:
    count = rows.shape[0]
    return (torch.arange(count, device=rows.device) == (k if count > 1 else 0)).unsqueeze(1)


def minibatch(index: Tensor, k: Any, num_rows: int, size: int) -> Tensor:
    """Rows of mini-batch k of task `index`: every pass has an order of its own, and a batch may straddle two passes."""
    position_B = k * size + torch.arange(size, device=index.device)
    passes_B = torch.div(position_B, num_rows, rounding_mode="floor")
    keys_BR = _hash(_hash(_hash(index) + passes_B).unsqueeze(1) + torch.arange(num_rows, device=index.device))
    return keys_BR.argsort(dim=1).gather(1, (position_B % num_rows).unsqueeze(1)).squeeze(1)


def _hash(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on int64, whose products wrap."""
    x = x * -7046029254386353131
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ (x >> 31 & 0x1FFFFFFFF)


RECORD = Statistics(use=lambda _stats, _k: {}, keep=record)
RECALL = Statistics(use=recall, keep=lambda stats, _k, _seen, _momentum: stats)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value}: choose one of {', '.join(choices)}")


def check_steps(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: need at least 1")


def check_rate(name: str, rate: float) -> None:
    if not rate > 0:
        raise ValueError(f"{name}={rate}: must be above 0")


def check_rule(rule: Rule) -> None:
    check_steps(steps=rule.steps, test_steps=rule.test_steps)
    check_choice("order", rule.order, ("first", "second"))
    check_choice("loss_reduction", rule.loss_reduction, ("mean", "sum_over_ways"))
    check_choice("bn", rule.bn, ("batch", "support", "running", "per_step"))
    if not rule.adapt:
        raise ValueError('adapt=[]: need at least one pattern; ["*"] adapts all weights')
    if rule.bn == "per_step" and rule.test_steps > rule.steps:
        raise ValueError(
            f"test_steps={rule.test_steps}: bn=per_step has statistics for {rule.steps} steps; "
            f"use test_steps <= {rule.steps} or another bn"
        )
