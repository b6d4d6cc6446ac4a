"""Gradient descent on a task's support set: the fields, the loop and the losses that all gradient-based methods share.

    v_0 = start,   v_k+1 = update(v_k, grad of the support loss at w(v_k)),   meta-loss = L(w(v_K); query)

What moves (v), the weights it stands for (w) and the update are the method's own; for MAML v is the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import cross_entropy, linear, mse_loss
from torch.utils._pytree import tree_map

from metarun.algos.pieces.norm_statistics import (
    RECALL,
    RECORD,
    BatchNormMode,
    Statistics,
    fresh_buffers,
    recall,
    record,
    row,
)
from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll

Forward = Callable[[Params, Tensor, Params], tuple[Tensor, Params]]
Order = Literal["first", "second"]
Reduction = Literal["mean", "sum_over_ways"]
NORMS = "norms"  # the entry of Meta with one row of scales and shifts for each inner step
MSL_FLOOR = 0.03  # Antoniou 2019, released code: the least weight of an early step is this / steps


class Slope(NamedTuple):
    """What step k of an inner loop sees."""

    gradient: Params
    loss: Tensor
    k: Any


class Carry(NamedTuple):
    moving: Params
    state: Any  # an update rule's own
    stats: Params
    early: Tensor  # sum of weighted query losses before the last step


class Given(NamedTuple):
    support: Batch
    later: tuple[Batch, ...]  # what is scored after every step: one batch or none
    meta: Meta
    seen: Params  # the statistics of a body that does not move
    step: Tensor


@dataclass(frozen=True)
class Descent:
    """Fields and course of an inner loop. A method adds `init` and `update`, and changes of the rest what it must."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    steps: int
    test_steps: int
    inner_lr: float
    derivatives: Order
    second_order_from: int  # meta-step until which derivatives=second takes the inner gradient for a constant
    multi_step_loss_until: int
    loss_reduction: Reduction
    adapt: tuple[str, ...]
    outer_loss_on: Literal["query", "support"]  # what the outer loss is taken on: the query, or the support itself
    bn: BatchNormMode
    bn_weights: Literal["shared", "per_step"]

    def __post_init__(self) -> None:
        check_descent(self)

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        matching(weights, self.adapt)
        buffers = fresh_buffers(self.bn, net, self.steps)
        if self.bn_weights == "shared":
            return {"weights": weights, **buffers}
        names = norm_names(net, weights)
        rows = {name: weights[name].repeat(self.steps + 1, 1) for name in names}
        shared = {name: value for name, value in weights.items() if name not in names}
        return {"weights": shared, **({NORMS: rows} if rows else {}), **buffers}

    def moving(self, meta: Meta) -> Params:
        return matching(meta["weights"], self.adapt)

    def weights(self, meta: Meta, moving: Params, k: Any) -> Params:
        return {**meta["weights"], **recall(meta.get(NORMS, {}), k), **moving}

    def begin(self, meta: Meta, moving: Params) -> Any:
        return ()

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        raise NotImplementedError

    def shares(self, meta: Meta, losses_S: Tensor) -> Tensor:
        """Of each item in the support loss; constants for the inner gradient, and learned through the outer one."""
        return torch.full_like(losses_S, 1 / len(losses_S))

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        outer = episode.query if self.outer_loss_on == "query" else episode.support
        given = Given(episode.support, (outer,) if self.multi_step_loss_until else (), meta, {}, step)
        end = descend(self, net, given, self.steps, RECORD, unroll)
        weights = self.weights(meta, end.moving, self.steps)
        out, seen = scored(self.bn, net, weights, episode.support, outer.x)
        loss = objective(out, outer.y)
        aux = Aux(measure(loss, out, outer.y), record(end.stats, self.steps, seen, net.momentum))
        return (
            end.early + importance(self, step.to(loss.dtype))[-1] * loss if self.multi_step_loss_until else loss
        ), aux

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        now = torch.tensor(self.second_order_from, device=support.x.device)
        end = descend(self, net, Given(support, (), meta, {}, now), self.test_steps, RECALL, unroll)
        weights = self.weights(meta, end.moving, self.steps)
        return Adapted(weights, final_stats(self.bn, net, weights, end.stats, support))

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]


def descend(rule: Descent, net: Net, given: Given, num_steps: int, statistics: Statistics, unroll: Unroll) -> Carry:
    meta, support = given.meta, given.support
    moving = rule.moving(meta)
    start = Carry(moving, rule.begin(meta, moving), meta.get(BUFFERS, {}), support.x.new_zeros(()))
    body_stays = all(name in ("head.weight", "head.bias") for name in moving)
    body_once = body_stays and "per_step" not in (rule.bn, rule.bn_weights) and not given.later
    if body_once:
        # The body is the same at every step: one pass serves them all.
        z, seen = net.embed(meta["weights"], support.x, statistics.use(start.stats, 0))
        given = given._replace(support=Batch(z, support.y), seen=seen)
    forward = _head if body_once else net
    end: Carry = unroll(partial(_step, rule, net, forward, statistics), start, given, num_steps)
    return end


def _head(weights: Params, z: Tensor, _stats: Params) -> tuple[Tensor, Params]:
    return linear(z, weights["head.weight"], weights.get("head.bias")), {}


def _step(
    rule: Descent, net: Net, forward: Forward, statistics: Statistics, carry: Carry, given: Given, k: Any
) -> Carry:
    moving, meta, support = carry.moving, given.meta, given.support
    if rule.derivatives == "first":
        moving, meta, support = tree_map(torch.detach, (moving, meta, support))

    def item_losses(moving: Params) -> tuple[Tensor, Params]:
        out, seen = forward(rule.weights(meta, moving, k), support.x, statistics.use(carry.stats, k))
        scale = out.shape[-1] if rule.loss_reduction == "sum_over_ways" else 1
        return scale * objective(out, support.y, "none"), seen

    losses_S, pull, seen = cast(Any, vjp(item_losses, moving, has_aux=True))  # typed as if it gave two
    shares_S = rule.shares(meta, losses_S)
    (gradient,) = pull(shares_S)
    if rule.derivatives == "second" and rule.second_order_from:
        second = given.step >= rule.second_order_from
        gradient = {name: torch.where(second, value, value.detach()) for name, value in gradient.items()}
    slope = Slope(gradient, (shares_S * losses_S).sum(), k)
    moving, state = rule.update(given.meta, carry.moving, slope, carry.state)
    stats = statistics.keep(carry.stats, k, seen or given.seen, net.momentum)
    return Carry(moving, state, stats, _early(rule, net, carry, given, k))


def _early(rule: Descent, net: Net, carry: Carry, given: Given, k: Any) -> Tensor:
    """The losses after the steps before step k; there are none before the first."""
    if not given.later or (isinstance(k, int) and k == 0):
        return carry.early
    (outer,) = given.later
    out, _ = scored(rule.bn, net, rule.weights(given.meta, carry.moving, k), given.support, outer.x)
    return carry.early + row(importance(rule, given.step.to(out.dtype)), k) * objective(out, outer.y)


def importance(rule: Descent, step: Tensor) -> Tensor:
    """The share of the loss after 0, 1, .. steps in the meta-loss: even at first, the last one's alone in the end.

    As in the released code of Antoniou 2019: an early share falls by 1 / steps over `multi_step_loss_until` steps, not
    below a floor, and what it loses goes to the last.
    """
    even = 1 / rule.steps
    early = (even * (1 - step / rule.multi_step_loss_until)).clamp(min=MSL_FLOOR * even)
    early = torch.where(step < rule.multi_step_loss_until, early, 0)
    return torch.cat([early.new_zeros(1), early.repeat(rule.steps - 1), (1 - (rule.steps - 1) * early).reshape(1)])


def scored(bn: BatchNormMode, net: Net, weights: Params, support: Batch, x: Tensor) -> tuple[Tensor, Params]:
    """Outputs for x in training: normalised by the support's statistics, or by x's own."""
    return net(weights, x, net(weights, support.x)[1] if bn == "support" else {})


def final_stats(bn: BatchNormMode, net: Net, weights: Params, stats: Params, support: Batch) -> Params:
    """What queries are normalised with at test; nothing: their own."""
    if bn == "support":
        return net(weights, support.x)[1]
    return {name: rows[-1] for name, rows in stats.items()}


def plain(rate: float, weights: Params, gradient: Params) -> Params:
    return {name: value - rate * gradient[name] for name, value in weights.items()}


def objective(out: Tensor, y: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """The loss, or each item's."""
    if not y.is_floating_point():
        return cross_entropy(out, y, reduction=reduction)
    assert out.shape == y.shape, f"outputs {tuple(out.shape)} for targets {tuple(y.shape)}"
    loss = mse_loss(out, y, reduction=reduction)
    return loss if reduction == "mean" else loss.flatten(1).mean(dim=1)


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


def norm_names(net: Net, weights: Params) -> list[str]:
    layers = {name.rpartition(".")[0] for name in net.init_stats()}
    return [name for name in weights if name.rpartition(".")[0] in layers]


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


def check_from(**steps: int) -> None:
    for name, step in steps.items():
        if step < 0:
            raise ValueError(f"{name}={step}: counts meta-steps; 0 switches it off")


def check_descent(rule: Descent) -> None:
    check_steps(steps=rule.steps, test_steps=rule.test_steps)
    check_rate("inner_lr", rule.inner_lr)
    check_choice("derivatives", rule.derivatives, ("first", "second"))
    check_from(second_order_from=rule.second_order_from, multi_step_loss_until=rule.multi_step_loss_until)
    check_choice("loss_reduction", rule.loss_reduction, ("mean", "sum_over_ways"))
    check_choice("outer_loss_on", rule.outer_loss_on, ("query", "support"))
    check_choice("bn", rule.bn, ("batch", "support", "running", "per_step"))
    check_choice("bn_weights", rule.bn_weights, ("shared", "per_step"))
    if not rule.adapt:
        raise ValueError('adapt=[]: need at least one pattern; ["*"] adapts all weights')
    if rule.derivatives == "first" and rule.second_order_from:
        raise ValueError(f"second_order_from={rule.second_order_from}: is for derivatives=second alone; change one")
    if "per_step" in (rule.bn, rule.bn_weights) and rule.test_steps > rule.steps:
        name = "bn" if rule.bn == "per_step" else "bn_weights"
        raise ValueError(
            f"test_steps={rule.test_steps}: {name}=per_step has rows for {rule.steps} steps; "
            f"use test_steps <= {rule.steps} or another {name}"
        )
