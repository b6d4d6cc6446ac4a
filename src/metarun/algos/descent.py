"""Gradient descent on a task's support set: the inner loop that all gradient-based methods share.

    v_0 = start,   v_k+1 = update(v_k, grad of the support loss at w(v_k)),   meta-loss = L(w(v_K); query)

v are the fast weights, w the network's weights as a function of them. Both, and the update, are the method's own. For
MAML v are the weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import linear
from torch.utils._pytree import tree_map

from metarun.algos.pieces.checks import check_choice, check_counts, check_meta_steps, check_positive
from metarun.algos.pieces.losses import item_losses, metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import (
    UPDATE_STORED,
    USE_STORED,
    NormPolicy,
    StepwiseBatchNormMode,
    fresh_buffers,
    query_outputs,
    query_statistics,
    row_at,
    stored_at,
    update_stored,
)
from metarun.algos.pieces.weights import select_weights
from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, StepIndex, Unroll

LossReduction = Literal["mean", "sum_over_ways"]
RuleState = TypeVar("RuleState")
NoState = tuple[()]
NORMS = "norms"  # the entry of Meta with scales and shifts of norm layers, one row for each inner step
LEAST_STEP_WEIGHT = 0.03  # Antoniou 2019, released code: least weight of an early step's loss, times 1 / steps


class InnerGradient(NamedTuple):
    """What the update of step k is given."""

    gradient: Params  # of the support loss, for each fast weight
    loss: Tensor  # the support loss
    k: StepIndex


class DescentCarry(NamedTuple, Generic[RuleState]):
    """What changes from step to step."""

    fast: Params  # the fast weights v_k
    state: RuleState  # the update rule's own
    stats: Params  # stored statistics of norm layers
    early_loss: Tensor  # weighted sum of the outer losses before the last step


class DescentConsts(NamedTuple):
    """What all steps read."""

    support: Batch
    outer: tuple[Batch, ...]  # the batch of the outer loss where the loss counts after every step; else none
    meta: Meta
    body_stats: Params  # statistics that the body used, where it is computed once for all steps
    meta_step: Tensor


@dataclass(frozen=True)
class Descent(Generic[RuleState]):
    """Fields and course of an inner loop. A method adds init_state and update, and overrides what else differs."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    steps: int
    test_steps: int
    inner_lr: float
    derivatives: Literal["first", "second"]  # first: the inner gradient is detached
    second_order_from: int  # meta-step until which derivatives=second detaches it too
    multi_step_loss_until: int  # meta-step until which every inner step's outer loss counts; 0: the last alone
    loss_reduction: LossReduction
    adapt: tuple[str, ...]
    outer_loss_on: Literal["query", "support"]
    bn: StepwiseBatchNormMode
    bn_weights: Literal["shared", "per_step"]

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, test_steps=self.test_steps)
        check_positive(inner_lr=self.inner_lr)
        check_choice("derivatives", self.derivatives, ("first", "second"))
        check_meta_steps(second_order_from=self.second_order_from, multi_step_loss_until=self.multi_step_loss_until)
        check_choice("loss_reduction", self.loss_reduction, ("mean", "sum_over_ways"))
        check_choice("outer_loss_on", self.outer_loss_on, ("query", "support"))
        check_choice("bn", self.bn, ("batch", "support", "running", "per_step"))
        check_choice("bn_weights", self.bn_weights, ("shared", "per_step"))
        if not self.adapt:
            raise ValueError('adapt=[]: need at least one pattern; ["*"] adapts all weights')
        if self.derivatives == "first" and self.second_order_from:
            raise ValueError(
                f"second_order_from={self.second_order_from}: is for derivatives=second alone; set one of them anew"
            )
        if "per_step" in (self.bn, self.bn_weights) and self.test_steps > self.steps:
            name = "bn" if self.bn == "per_step" else "bn_weights"
            raise ValueError(
                f"test_steps={self.test_steps}: {name}=per_step has rows for {self.steps} steps; "
                f"use test_steps <= {self.steps} or another {name}"
            )

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        select_weights(weights, self.adapt)
        buffers = fresh_buffers(self.bn, net, self.steps)
        if self.bn_weights == "shared":
            return {"weights": weights, **buffers}
        names = norm_weight_names(net, weights)
        rows = {name: weights[name].repeat(self.steps + 1, 1) for name in names}
        shared = {name: value for name, value in weights.items() if name not in names}
        return {"weights": shared, **({NORMS: rows} if rows else {}), **buffers}

    def fast_weights(self, meta: Meta) -> Params:
        """The start v_0 of what the inner loop changes."""
        return select_weights(meta["weights"], self.adapt)

    def net_weights(self, meta: Meta, fast: Params, k: StepIndex) -> Params:
        """The network's weights w(v) at step k."""
        return {**meta["weights"], **stored_at(meta.get(NORMS, {}), k), **fast}

    def init_state(self, meta: Meta, fast: Params) -> RuleState:
        """The first state of the update rule."""
        raise NotImplementedError

    def update(self, meta: Meta, fast: Params, inner: InnerGradient, state: RuleState) -> tuple[Params, RuleState]:
        """v_k+1 and the rule's state, from v_k and the gradient there."""
        raise NotImplementedError

    def item_weights(self, meta: Meta, losses_S: Tensor) -> Tensor:
        """weights_S of the items in the support loss. The inner gradient treats them as constants."""
        return torch.full_like(losses_S, 1 / len(losses_S))

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        outer = episode.query if self.outer_loss_on == "query" else episode.support
        consts = DescentConsts(episode.support, (outer,) if self.multi_step_loss_until else (), meta, {}, step)
        end = descend(self, net, consts, self.steps, UPDATE_STORED, unroll)
        weights = self.net_weights(meta, end.fast, self.steps)
        outputs, used = query_outputs(self.bn, net, weights, episode.support, outer.x)
        loss = task_loss(outputs, outer.y)
        aux = Aux(metrics_of(loss, outputs, outer.y), update_stored(end.stats, self.steps, used, net.momentum))
        if not self.multi_step_loss_until:
            return loss, aux
        return end.early_loss + step_weights(self, step.to(loss.dtype))[-1] * loss, aux

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        meta_step = torch.tensor(self.second_order_from, device=support.x.device)
        consts = DescentConsts(support, (), meta, {}, meta_step)
        end = descend(self, net, consts, self.test_steps, USE_STORED, unroll)
        weights = self.net_weights(meta, end.fast, self.steps)
        return Adapted(weights, query_statistics(self.bn, net, weights, end.stats, support))

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]


@dataclass(frozen=True)
class StatelessDescent(Descent[NoState]):
    """A descent whose update depends on the gradient and nothing else. A method adds `step`."""

    def step(self, meta: Meta, fast: Params, inner: InnerGradient) -> Params:
        """v_k+1 from v_k and the gradient there."""
        raise NotImplementedError

    def init_state(self, meta: Meta, fast: Params) -> NoState:
        return ()

    def update(self, meta: Meta, fast: Params, inner: InnerGradient, state: NoState) -> tuple[Params, NoState]:
        return self.step(meta, fast, inner), ()


def descend(
    rule: Descent[RuleState], net: Net, consts: DescentConsts, num_steps: int, norms: NormPolicy, unroll: Unroll
) -> DescentCarry[RuleState]:
    meta, support = consts.meta, consts.support
    fast = rule.fast_weights(meta)
    start = DescentCarry(fast, rule.init_state(meta, fast), meta.get(BUFFERS, {}), support.x.new_zeros(()))
    body_is_fixed = all(name in ("head.weight", "head.bias") for name in fast)
    body_once = body_is_fixed and "per_step" not in (rule.bn, rule.bn_weights) and not consts.outer
    if body_once:
        # Embeddings are the same at every step: they are computed once.
        z, used = net.embed(meta["weights"], support.x, norms.normalise_with(start.stats, 0))
        consts = consts._replace(support=Batch(z, support.y), body_stats=used)
    return unroll(partial(_descent_step, rule, net, body_once, norms), start, consts, num_steps)


def _descent_step(
    rule: Descent[RuleState],
    net: Net,
    body_once: bool,
    norms: NormPolicy,
    carry: DescentCarry[RuleState],
    consts: DescentConsts,
    k: StepIndex,
) -> DescentCarry[RuleState]:
    fast, meta, support = carry.fast, consts.meta, consts.support
    if rule.derivatives == "first":
        fast, meta, support = tree_map(torch.detach, (fast, meta, support))

    def support_losses(fast: Params) -> tuple[Tensor, Params]:
        weights = rule.net_weights(meta, fast, k)
        used: Params
        if body_once:
            outputs, used = linear(support.x, weights["head.weight"], weights.get("head.bias")), {}
        else:
            outputs, used = net(weights, support.x, norms.normalise_with(carry.stats, k))
        scale = outputs.shape[-1] if rule.loss_reduction == "sum_over_ways" else 1
        return scale * item_losses(outputs, support.y), used

    losses_S, pull, used = cast(Any, vjp(support_losses, fast, has_aux=True))  # torch's types give two
    weights_S = rule.item_weights(meta, losses_S)
    (gradient,) = pull(weights_S)
    if rule.derivatives == "second" and rule.second_order_from:
        second = consts.meta_step >= rule.second_order_from
        gradient = {name: torch.where(second, value, value.detach()) for name, value in gradient.items()}
    inner = InnerGradient(gradient, (weights_S * losses_S).sum(), k)
    fast, state = rule.update(consts.meta, carry.fast, inner, carry.state)
    stats = norms.updated(carry.stats, k, consts.body_stats if body_once else used, net.momentum)
    return DescentCarry(fast, state, stats, _early_loss(rule, net, carry, consts, k))


def _early_loss(
    rule: Descent[RuleState], net: Net, carry: DescentCarry[RuleState], consts: DescentConsts, k: StepIndex
) -> Tensor:
    """Adds the weighted outer loss at v_k, for k > 0."""
    if not consts.outer or (isinstance(k, int) and k == 0):
        return carry.early_loss
    (outer,) = consts.outer
    weights = rule.net_weights(consts.meta, carry.fast, k)
    outputs, _ = query_outputs(rule.bn, net, weights, consts.support, outer.x)
    weight = row_at(step_weights(rule, consts.meta_step.to(outputs.dtype)), k)
    return carry.early_loss + weight * task_loss(outputs, outer.y)


def step_weights(rule: Descent[RuleState], meta_step: Tensor) -> Tensor:
    """The weights of the outer losses after 0, 1, .. steps: equal at meta-step 0, the last step's alone in the end.

    As in the released code of Antoniou 2019: over `multi_step_loss_until` meta-steps the weight of an early step falls
    from 1 / steps to a lower bound, and afterwards is 0. The last step's weight is the rest of 1.
    """
    even = 1 / rule.steps
    early = (even * (1 - meta_step / rule.multi_step_loss_until)).clamp(min=LEAST_STEP_WEIGHT * even)
    early = torch.where(meta_step < rule.multi_step_loss_until, early, 0)
    return torch.cat([early.new_zeros(1), early.repeat(rule.steps - 1), (1 - (rule.steps - 1) * early).reshape(1)])


def norm_weight_names(net: Net, weights: Params) -> list[str]:
    """The scales and shifts of batch norm layers."""
    layers = {name.rpartition(".")[0] for name in net.init_stats()}
    return [name for name in weights if name.rpartition(".")[0] in layers]
