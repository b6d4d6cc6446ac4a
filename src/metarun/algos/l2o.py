"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016, arXiv 1606.04474).

    w_k+1 = w_k + alpha g_k,   (g_k, h_k+1) = m(grad L(w_k; support), h_k),   meta-loss = sum over k of L(w_k)

m is an LSTM of two layers and a linear output, applied to each coordinate by itself with shared parameters and a
memory h of its own; it sees the gradient as two numbers (app. A). `derivatives: first` detaches the gradient, as
the paper does. `multi_step_loss_until` beyond the last meta-step has every loss count alike, as in the paper
but for the factor 1 / steps. The start w_0 is learned too, and a plain step of rate `descent` is added: both are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.algos.pieces.coordinatewise import preprocessed, stacked, unstacked
from metarun.algos.pieces.dense_lstm import dense, dense_init, lstm, lstm_init
from metarun.types import Meta, Net, Params


@dataclass(frozen=True)
class L2O(Descent):
    hidden: int
    p: float
    descent: float

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_loop.check_steps(hidden=self.hidden)
        inner_loop.check_rate("p", self.p)
        if self.descent < 0:
            raise ValueError(f"descent={self.descent}: must be 0 or above; 0 is the paper's")

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta, like = super().init(net, weights, seed), next(iter(weights.values()))
        return {
            **meta,
            "lstm_1": lstm_init(seed, like, 2, self.hidden),
            "lstm_2": lstm_init(seed + 1, like, self.hidden, self.hidden),
            "output": dense_init(seed + 2, like, self.hidden, 1),
        }

    def begin(self, meta: Meta, moving: Params) -> Any:
        zero_PH = torch.zeros_like(stacked(moving)).unsqueeze(1).expand(-1, self.hidden)
        return (zero_PH, zero_PH), (zero_PH, zero_PH)

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        gradient_P = stacked(slope.gradient)
        one = lstm(meta["lstm_1"], preprocessed(gradient_P, self.p), state[0])
        two = lstm(meta["lstm_2"], one[0], state[1])
        g_P = dense(meta["output"], two[0]).squeeze(1)
        return unstacked(stacked(moving) + self.inner_lr * g_P - self.descent * gradient_P, moving), (one, two)
