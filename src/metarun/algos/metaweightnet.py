"""Meta-Weight-Net: a small net weights the items of a noisy support set (Shu et al. 2019, arXiv 1902.07379).

    w_k+1 = w_k - alpha * grad sum_i v_i l_i(w_k) / sum_i v_i,   v_i = sigmoid(V(l_i; Theta))
    meta-loss = L(w_K; query)

l_i is the loss of support item i. As in the paper the inner gradient treats v as a constant. Theta is learned through
the effect of v on w, so `derivatives` must be second; theta also through the losses that are the inputs of V. With
equal v this is MAML. The paper has one training set with noise, and a clean part of it as query; here each task has
both. Where all losses are equal, as under the zero head of a new net, the weights are equal too: V has an effect from
the second step on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarun.algos.descent import InnerGradient, StatelessDescent
from metarun.algos.pieces.checks import check_counts
from metarun.algos.pieces.dense_lstm import dense, dense_init
from metarun.algos.pieces.weights import gradient_step
from metarun.types import Kind, Meta, Net, Params

WEIGHTING = "weighting"  # the entry of Meta with Theta


@dataclass(frozen=True)
class MetaWeightNet(StatelessDescent):
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})

    hidden: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(hidden=self.hidden)
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

    def step(self, meta: Meta, fast: Params, inner: InnerGradient) -> Params:
        return gradient_step(self.inner_lr, fast, inner.gradient)

    def item_weights(self, meta: Meta, losses_S: Tensor) -> Tensor:
        v_S = torch.sigmoid(dense(meta[WEIGHTING], losses_S.unsqueeze(1)).squeeze(1))
        return v_S / v_S.sum()
