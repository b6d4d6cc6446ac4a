"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017, arXiv 1703.03400), and what differs from it by a field.

    w_0 = theta,   w_k+1 = w_k - alpha * grad L(w_k; support),   meta-loss = L(w_K; query)

`order: first` takes the inner gradient for a constant: first-order MAML (the same paper, section 5.2).
`adapt: [head.*]` moves the last layer alone: ANIL (Raghu et al. 2020, arXiv 1909.09157).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metarun.algos import inner_loop
from metarun.algos.inner_loop import RECALL, RECORD, BatchNormMode, Order, Reduction
from metarun.types import Adapted, Aux, Batch, Episode, Kind, Meta, Net, Params, Unroll


@dataclass(frozen=True)
class MAML:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "values"})
    uses_head: ClassVar[bool] = True

    steps: int
    test_steps: int
    inner_lr: float
    order: Order
    loss_reduction: Reduction
    adapt: tuple[str, ...]
    bn: BatchNormMode

    def __post_init__(self) -> None:
        inner_loop.check_rule(self)
        inner_loop.check_rate("inner_lr", self.inner_lr)

    def init(self, net: Net, weights: Params) -> Meta:
        inner_loop.matching(weights, self.adapt)
        return {"weights": weights, **inner_loop.fresh_buffers(self.bn, net, self.steps)}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        alpha = self._rates(meta["weights"])
        task = inner_loop.descend(self, net, meta, alpha, episode.support, self.steps, RECORD, unroll)
        return inner_loop.query_loss(self, net, task, episode)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adapted:
        alpha = self._rates(meta["weights"])
        task = inner_loop.descend(self, net, meta, alpha, support, self.test_steps, RECALL, unroll)
        return inner_loop.predictor(self.bn, net, task, support)

    def predict(self, net: Net, meta: Meta, adapted: Adapted, x: Tensor) -> Tensor:
        return net(adapted.weights, x, adapted.stats)[0]

    def _rates(self, weights: Params) -> Params:
        chosen = inner_loop.matching(weights, self.adapt)
        return {name: value.new_full((), self.inner_lr) for name, value in chosen.items()}
