"""Meta-SGD: a learned step for every weight (Li, Zhou, Chen and Li 2017, arXiv 1707.09835).

    w_0 = theta,   w_k+1 = w_k - alpha o grad L(w_k; support),   meta-loss = L(w_K; query)

where alpha has the shape of theta and is learned with it: its sign and size are the direction and the rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarun.algos import inner_loop
from metarun.algos.inner_loop import RECALL, RECORD, BatchNormMode, Order, Reduction
from metarun.types import Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Unroll


@dataclass(frozen=True)
class MetaSGD:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True

    steps: int
    test_steps: int
    inner_lr: float  # of every weight before anything is learned
    order: Order
    loss_reduction: Reduction
    adapt: tuple[str, ...]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        inner_loop.check_rule(self)
        inner_loop.check_rate("inner_lr", self.inner_lr)

    def init(self, net: Net, weights: Params) -> Meta:
        chosen = inner_loop.matching(weights, self.adapt)
        alpha = {name: torch.full_like(value, self.inner_lr) for name, value in chosen.items()}
        return {"weights": weights, "rates": alpha, **inner_loop.fresh_buffers(self.bn, net, self.steps)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        task = inner_loop.descend(self, net, meta, meta["rates"], episode.support, self.steps, RECORD, unroll)
        return inner_loop.query_loss(self, net, task, episode)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        task = inner_loop.descend(self, net, meta, meta["rates"], support, self.test_steps, RECALL, unroll)
        return inner_loop.predictor(self.bn, net, task, support)

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]
