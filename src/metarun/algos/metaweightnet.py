"""Meta-Weight-Net: a small net that weighs the items of a noisy support (Shu et al. 2019, arXiv 1902.07379).

    w_k+1 = w_k - alpha * grad sum_i v_i l_i(w_k) / sum_i v_i,   v_i = sigmoid(V(l_i; Theta))
    meta-loss = L(w_K; query)

where l_i is the loss of support item i. As in the paper v is a constant for the gradient of w. Theta is learned through
what v does to w, so `derivatives` must be second; theta also through the losses that V is given. Equal v are MAML.
In the paper there is one training set with noise and a clean part of it plays the query; here each task is one. Where
all losses are equal, as under the zero head of a new net, the weights are too: V acts from the second step on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.algos.pieces.dense_lstm import dense, dense_init
from metarun.types import Kind, Meta, Net, Params

WEIGHTING = "weighting"  # the entry of Meta with Theta


@dataclass(frozen=True)
class MetaWeightNet(Descent):
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})

    hidden: int

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_loop.check_steps(hidden=self.hidden)
        if self.derivatives == "first":
            raise ValueError(
                "derivatives=first: the weighting net learns through the inner gradient alone; use derivatives=second"
            )
        if self.steps == 1:
            raise ValueError(
                "steps=1: a new net's losses are all equal, so that nothing can be weighed; use at least 2"
            )

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        like = next(iter(weights.values()))
        return {**super().init(net, weights, seed), WEIGHTING: dense_init(seed, like, 1, self.hidden, 1)}

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        return inner_loop.plain(self.inner_lr, moving, slope.gradient), state

    def shares(self, meta: Meta, losses_S: Tensor) -> Tensor:
        v_S = torch.sigmoid(dense(meta[WEIGHTING], losses_S.unsqueeze(1)).squeeze(1))
        return v_S / v_S.sum()
