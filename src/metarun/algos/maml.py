"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017, arXiv 1703.03400), and its variants by field.

    w_0 = theta,   w_k+1 = w_k - alpha * grad L(w_k; support),   meta-loss = L(w_K; query)

First-order MAML (the same paper, section 5.2): `derivatives: first`, the inner gradient is detached.
ANIL (Raghu et al. 2020, arXiv 1909.09157): `adapt: [head.*]`, only the last layer is adapted.
BOIL (Oh et al. 2021, arXiv 2008.08882): `adapt: [body.*]`, all layers but the last are adapted.
MAML++ (Antoniou, Edwards and Storkey 2019, arXiv 1810.09502): an outer loss after every step
(`multi_step_loss_until`), first order at the start (`second_order_from`), learned rates alpha_lk for each layer l and
step k (`rates`), and statistics, scales and shifts of batch norm for each step (`bn`, `bn_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarun.algos.descent import InnerGradient, StatelessDescent
from metarun.algos.pieces.checks import check_choice
from metarun.algos.pieces.norm_statistics import row_at
from metarun.algos.pieces.weights import gradient_step
from metarun.types import Meta, Net, Params


@dataclass(frozen=True)
class MAML(StatelessDescent):
    rates: Literal["fixed", "per_layer_per_step"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rates", self.rates, ("fixed", "per_layer_per_step"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        if self.rates == "fixed":
            return meta
        alpha = {name: value.new_full((self.steps,), self.inner_lr) for name, value in self.fast_weights(meta).items()}
        return {**meta, "rates": alpha}

    def step(self, meta: Meta, fast: Params, inner: InnerGradient) -> Params:
        if self.rates == "fixed":
            return gradient_step(self.inner_lr, fast, inner.gradient)
        alpha = {name: row_at(rates_K, inner.k) for name, rates_K in meta["rates"].items()}
        return {name: w - alpha[name] * inner.gradient[name] for name, w in fast.items()}
