"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016, arXiv 1606.04474).

    w_k+1 = w_k + alpha g_k,   (g_k, h_k+1) = m(grad L(w_k; support), h_k),   meta-loss = sum over k of L(w_k)

m is an LSTM of two layers with a linear output. It is applied to each coordinate separately, with shared parameters and
a state h for each, and sees the gradient as two numbers (app. A). `derivatives: first` detaches the gradient, as the
paper does. Where `multi_step_loss_until` is beyond the last meta-step, the losses after all steps have equal weight, as
in the paper but for the factor 1 / steps. Two things are ours: the start w_0 is learned, and a plain gradient step of
rate `descent` is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarun.algos.descent import Descent, InnerGradient
from metarun.algos.pieces.checks import check_counts, check_positive
from metarun.algos.pieces.coordinatewise import flatten_weights, log_and_sign, unflatten_weights
from metarun.algos.pieces.dense_lstm import LSTMState, dense, dense_init, lstm_cell, lstm_init
from metarun.types import Meta, Net, Params

TwoLayers = tuple[LSTMState, LSTMState]


@dataclass(frozen=True)
class L2O(Descent[TwoLayers]):
    hidden: int
    p: float
    descent: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(hidden=self.hidden)
        check_positive(p=self.p)
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

    def init_state(self, meta: Meta, fast: Params) -> TwoLayers:
        zero_PH = torch.zeros_like(flatten_weights(fast)).unsqueeze(1).expand(-1, self.hidden)
        return (zero_PH, zero_PH), (zero_PH, zero_PH)

    def update(self, meta: Meta, fast: Params, inner: InnerGradient, state: TwoLayers) -> tuple[Params, TwoLayers]:
        gradient_P = flatten_weights(inner.gradient)
        one = lstm_cell(meta["lstm_1"], log_and_sign(gradient_P, self.p), state[0])
        two = lstm_cell(meta["lstm_2"], one[0], state[1])
        g_P = dense(meta["output"], two[0]).squeeze(1)
        w_P = flatten_weights(fast) + self.inner_lr * g_P - self.descent * gradient_P
        return unflatten_weights(w_P, fast), (one, two)
