"""Implicit MAML (Rajeswaran, Finn, Kakade and Levine 2019, arXiv 1909.04630).

    phi* = argmin L_S(phi) + lambda / 2 |phi - theta|^2,   meta-gradient = (I + H / lambda)^-1 g

with H the Hessian of the support loss L_S, g the gradient of the query loss, both at phi*. The descent to phi* is not
differentiated, so its steps cost no memory; the system is solved by conjugate gradients. Weights f that are not adapted
have a say in where the adapted ones o end: with v = (I + H_oo / lambda)^-1 g_o, theirs is g_f - H_fo v / lambda.
`cg_damping` is added to I, as in the released code; that code also divides H by lambda + 10, and pulls phi to theta
once after the descent, not in every step. The meta-loss is a surrogate, sum(theta * constant): its value means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.func import grad, vjp

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.conjugate_gradient import solved
from metarun.algos.pieces.norm_statistics import RECALL, RECORD, Statistics, fresh_buffers, record
from metarun.types import BUFFERS, Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


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
    loss_reduction: inner_loop.Reduction
    adapt: tuple[str, ...]
    bn: Literal["batch", "support", "running"]

    def __post_init__(self) -> None:
        inner_loop.check_steps(steps=self.steps, test_steps=self.test_steps, cg_steps=self.cg_steps)
        inner_loop.check_rate("inner_lr", self.inner_lr)
        inner_loop.check_rate("proximal", self.proximal)
        for name, value in (("test_proximal", self.test_proximal), ("cg_damping", self.cg_damping)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: must be 0 or above")
        inner_loop.check_choice("loss_reduction", self.loss_reduction, ("mean", "sum_over_ways"))
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        inner_loop.matching(weights, self.adapt)
        return {"weights": weights, **fresh_buffers(self.bn, net, self.steps)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        support, query, _ = episode
        end = self._descend(net, meta, support, self.steps, self.proximal, RECORD, unroll)

        def query_loss(weights: Params) -> tuple[Tensor, tuple[Tensor, Params]]:
            out, seen = inner_loop.scored(self.bn, net, weights, support, query.x)
            return inner_loop.objective(out, query.y), (out, seen)

        g, (out, seen) = grad(query_loss, has_aux=True)(end.weights)
        implicit = self._implicit(net, end.weights, support, g, unroll)
        surrogate = sum((w * implicit[name]).sum() for name, w in meta["weights"].items())
        assert isinstance(surrogate, Tensor)
        metrics = inner_loop.measure(inner_loop.objective(out, query.y), out, query.y)
        return surrogate, Aux(metrics, record(end.stats, self.steps, seen, net.momentum))

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        end = self._descend(net, meta, support, self.test_steps, self.test_proximal, RECALL, unroll)
        return Adapted(end.weights, inner_loop.final_stats(self.bn, net, end.weights, end.stats, support))

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]

    def _support_loss(self, net: Net, weights: Params, support: Batch, stats: Params) -> tuple[Tensor, Params]:
        out, seen = net(weights, support.x, stats)
        scale = out.shape[-1] if self.loss_reduction == "sum_over_ways" else 1
        return scale * inner_loop.objective(out, support.y), seen

    def _descend(
        self,
        net: Net,
        meta: Meta,
        support: Batch,
        num_steps: int,
        proximal: float,
        statistics: Statistics,
        unroll: Unroll,
    ) -> Adapted:
        def step(carry: Adapted, given: tuple[Params, Batch], k: Any) -> Adapted:
            theta, support = given

            def loss(phi: Params) -> tuple[Tensor, Params]:
                return self._support_loss(net, {**theta, **phi}, support, statistics.use(carry.stats, k))

            phi = inner_loop.matching(carry.weights, self.adapt)
            g, seen = grad(loss, has_aux=True)(phi)
            phi = {name: w - self.inner_lr * (g[name] + proximal * (w - theta[name])) for name, w in phi.items()}
            return Adapted({**theta, **phi}, statistics.keep(carry.stats, k, seen, net.momentum))

        theta = inner_loop.detached(meta["weights"])
        end: Adapted = unroll(step, Adapted(theta, meta.get(BUFFERS, {})), (theta, support), num_steps)
        return end

    def _implicit(self, net: Net, at: Params, support: Batch, g: Params, unroll: Unroll) -> Params:
        o = inner_loop.matching(at, self.adapt)
        f = {name: w for name, w in at.items() if name not in o}

        def slope(o: Params, f: Params) -> Params:
            found: Params = grad(lambda o: self._support_loss(net, {**f, **o}, support, {})[0])(o)
            return found

        times_hessian = vjp(lambda o: slope(o, f), o)[1]

        def system(v: Params) -> Params:
            (product,) = times_hessian(v)
            return {name: (1 + self.cg_damping) * v[name] + product[name] / self.proximal for name in v}

        v = solved(system, {name: g[name] for name in o}, self.cg_steps, unroll)
        if not f:
            return v
        (mixed,) = vjp(lambda f: slope(o, f), f)[1](v)
        return {**v, **{name: g[name] - mixed[name] / self.proximal for name in f}}
