"""Implicit MAML (Rajeswaran, Finn, Kakade and Levine 2019, arXiv 1909.04630).

    phi* = argmin L_S(phi) + lambda / 2 |phi - theta|^2,   meta-gradient = (I + H / lambda)^-1 g

H is the Hessian of the support loss L_S, g the gradient of the query loss, both at phi*. The descent to phi* is not
differentiated, so its steps cost no memory; the linear system is solved by conjugate gradients. Weights f that are not
adapted influence where the adapted ones o end: with v = (I + H_oo / lambda)^-1 g_o, their gradient is
g_f - H_fo v / lambda. `cg_damping` is added to I, as in the released code; that code also divides H by lambda + 10, and
pulls phi to theta once after the descent instead of in every step. `proximal` is lambda.

The meta-loss is a surrogate, sum(theta * detached gradient): only its gradient has a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.func import grad, vjp

from metarun.algos.descent import LossReduction
from metarun.algos.pieces.checks import check_choice, check_counts, check_not_negative, check_positive
from metarun.algos.pieces.conjugate_gradient import conjugate_gradient
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import (
    UPDATE_STORED,
    USE_STORED,
    BatchNormMode,
    NormPolicy,
    fresh_buffers,
    query_outputs,
    query_statistics,
    update_stored,
)
from metarun.algos.pieces.weights import detached, select_weights
from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, StepIndex, Unroll


class ProximalConsts(NamedTuple):
    theta: Params
    support: Batch


@dataclass(frozen=True)
class IMAML:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True
    trains_on: ClassVar[Sampler] = "episodes"

    steps: int
    test_steps: int
    inner_lr: float
    proximal: float
    test_proximal: float
    cg_steps: int
    cg_damping: float
    loss_reduction: LossReduction
    adapt: tuple[str, ...]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, test_steps=self.test_steps, cg_steps=self.cg_steps)
        check_positive(inner_lr=self.inner_lr, proximal=self.proximal)
        check_not_negative(test_proximal=self.test_proximal, cg_damping=self.cg_damping)
        check_choice("loss_reduction", self.loss_reduction, ("mean", "sum_over_ways"))
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        select_weights(weights, self.adapt)
        return {"weights": weights, **fresh_buffers(self.bn, net, self.steps)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        support, query, _ = episode
        end = self._descend(net, meta, support, self.steps, self.proximal, UPDATE_STORED, unroll)

        def query_loss(weights: Params) -> tuple[Tensor, tuple[Tensor, Params]]:
            outputs, used = query_outputs(self.bn, net, weights, support, query.x)
            return task_loss(outputs, query.y), (outputs, used)

        g, (outputs, used) = grad(query_loss, has_aux=True)(end.weights)
        implicit = self._implicit_gradient(net, end.weights, support, g, unroll)
        surrogate = sum((w * implicit[name]).sum() for name, w in meta["weights"].items())
        assert isinstance(surrogate, Tensor)
        metrics = metrics_of(task_loss(outputs, query.y), outputs, query.y)
        return surrogate, Aux(metrics, update_stored(end.stats, self.steps, used, net.momentum))

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        end = self._descend(net, meta, support, self.test_steps, self.test_proximal, USE_STORED, unroll)
        return Adapted(end.weights, query_statistics(self.bn, net, end.weights, end.stats, support))

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]

    def _support_loss(self, net: Net, weights: Params, support: Batch, stats: Params) -> tuple[Tensor, Params]:
        outputs, used = net(weights, support.x, stats)
        scale = outputs.shape[-1] if self.loss_reduction == "sum_over_ways" else 1
        return scale * task_loss(outputs, support.y), used

    def _descend(
        self, net: Net, meta: Meta, support: Batch, num_steps: int, lam: float, norms: NormPolicy, unroll: Unroll
    ) -> Adapted:
        def step(carry: Adapted, consts: ProximalConsts, k: StepIndex) -> Adapted:
            theta, support = consts

            def loss(phi: Params) -> tuple[Tensor, Params]:
                return self._support_loss(net, {**theta, **phi}, support, norms.normalise_with(carry.stats, k))

            phi = select_weights(carry.weights, self.adapt)
            g, used = grad(loss, has_aux=True)(phi)
            phi = {name: w - self.inner_lr * (g[name] + lam * (w - theta[name])) for name, w in phi.items()}
            return Adapted({**theta, **phi}, norms.updated(carry.stats, k, used, net.momentum))

        theta = detached(meta["weights"])
        return unroll(step, Adapted(theta, meta.get(BUFFERS, {})), ProximalConsts(theta, support), num_steps)

    def _implicit_gradient(self, net: Net, at: Params, support: Batch, g: Params, unroll: Unroll) -> Params:
        o = select_weights(at, self.adapt)
        f = {name: w for name, w in at.items() if name not in o}

        def gradient_o(o: Params, f: Params) -> Params:
            found: Params = grad(lambda o: self._support_loss(net, {**f, **o}, support, {})[0])(o)
            return found

        times_H_oo = vjp(lambda o: gradient_o(o, f), o)[1]

        def system(v: Params) -> Params:
            (H_v,) = times_H_oo(v)
            return {name: (1 + self.cg_damping) * v[name] + H_v[name] / self.proximal for name in v}

        v = conjugate_gradient(system, {name: g[name] for name in o}, self.cg_steps, unroll)
        if not f:
            return v
        (H_fo_v,) = vjp(lambda f: gradient_o(o, f), f)[1](v)
        return {**v, **{name: g[name] - H_fo_v[name] / self.proximal for name in f}}
