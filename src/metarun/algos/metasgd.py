"""Meta-SGD: a learned step for every weight (Li, Zhou, Chen and Li 2017, arXiv 1707.09835).

    w_0 = theta,   w_k+1 = w_k - alpha o grad L(w_k; support),   meta-loss = L(w_K; query)

where alpha has the shape of theta and is learned with it: its sign and size are the direction and the rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metarun.algos.descent import Descent, Slope
from metarun.types import Meta, Net, Params


@dataclass(frozen=True)
class MetaSGD(Descent):
    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        return {**meta, "rates": {name: torch.full_like(w, self.inner_lr) for name, w in self.moving(meta).items()}}

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        alpha = meta["rates"]
        return {name: w - alpha[name] * slope.gradient[name] for name, w in moving.items()}, state
