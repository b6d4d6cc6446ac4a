"""Meta-SGD: a learned rate for every weight (Li, Zhou, Chen and Li 2017, arXiv 1707.09835).

    w_0 = theta,   w_k+1 = w_k - alpha o grad L(w_k; support),   meta-loss = L(w_K; query)

alpha has the shape of theta and is learned with it. Its sign and size set direction and length of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarun.algos.descent import InnerGradient, StatelessDescent
from metarun.types import Meta, Net, Params


@dataclass(frozen=True)
class MetaSGD(StatelessDescent):
    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        alpha = {name: torch.full_like(w, self.inner_lr) for name, w in self.fast_weights(meta).items()}
        return {**meta, "rates": alpha}

    def step(self, meta: Meta, fast: Params, inner: InnerGradient) -> Params:
        alpha = meta["rates"]
        return {name: w - alpha[name] * inner.gradient[name] for name, w in fast.items()}
