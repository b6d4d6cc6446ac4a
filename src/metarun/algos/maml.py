"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017, arXiv 1703.03400), and what differs from it by a field.

    w_0 = theta,   w_k+1 = w_k - alpha * grad L(w_k; support),   meta-loss = L(w_K; query)

`derivatives: first` takes the inner gradient for a constant: first-order MAML (the same paper, section 5.2).
`adapt: [head.*]` moves the last layer alone: ANIL (Raghu et al. 2020, arXiv 1909.09157); `[body.*]` all but the last:
BOIL (Oh et al. 2021, arXiv 2008.08882). MAML++ (Antoniou, Edwards and Storkey 2019, arXiv 1810.09502) is a loss after
every step (`multi_step_loss_until`), first order first (`second_order_from`), learned rates alpha_lk for each layer and
step (`rates`), and statistics, scales and shifts of batch norm for each step (`bn`, `bn_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.algos.pieces.norm_statistics import row
from metarun.types import Meta, Net, Params


@dataclass(frozen=True)
class MAML(Descent):
    rates: Literal["fixed", "per_layer_per_step"]

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_loop.check_choice("rates", self.rates, ("fixed", "per_layer_per_step"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        if self.rates == "fixed":
            return meta
        alpha = {name: value.new_full((self.steps,), self.inner_lr) for name, value in self.moving(meta).items()}
        return {**meta, "rates": alpha}

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        if self.rates == "fixed":
            return inner_loop.plain(self.inner_lr, moving, slope.gradient), state
        alpha = {name: row(rates_K, slope.k) for name, rates_K in meta["rates"].items()}
        return {name: w - alpha[name] * slope.gradient[name] for name, w in moving.items()}, state
