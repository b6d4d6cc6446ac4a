"""LSTM meta-learner (Ravi and Larochelle 2017, ICLR, openreview rJY0-Kcll, not on arXiv).

An LSTM whose cell state is a weight of the net learns the inner update. The start c_0 = theta is learned too:

    c_t = f_t c_t-1 - i_t grad,
    i_t = sigmoid(W_I [h_t, c_t-1, i_t-1] + b_I),   f_t = sigmoid(W_F [h_t, c_t-1, f_t-1] + b_F)

for each coordinate separately, with shared parameters. h_t is the output of a standard LSTM whose inputs are the
coordinate's gradient and the loss, each as two numbers (Andrychowicz 2016, arXiv 1606.04474, app. A). b_F starts large
and b_I small, so that learning starts from gradient descent. `derivatives: first` detaches gradient and loss, as the
paper does. A gate is at most 1: the rate of a coordinate is at most 1, or the number of ways under `sum_over_ways`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.algos.descent import Descent, InnerGradient
from metarun.algos.pieces.checks import check_counts, check_positive
from metarun.algos.pieces.coordinatewise import flatten_weights, log_and_sign, unflatten_weights
from metarun.algos.pieces.dense_lstm import LSTMState, dense, lstm_cell, lstm_init, seeded_generator, uniform_like
from metarun.types import Meta, Net, Params

GATE_BOUND = 0.01  # of the gates' initial weights: small, so that the biases decide


class GateState(NamedTuple):
    """What the LSTM keeps for each of the P coordinates beside the weight."""

    lstm: LSTMState  # h_PH, c_PH
    input_gate: Tensor  # i_P1 of the step before
    forget_gate: Tensor  # f_P1 of the step before


@dataclass(frozen=True)
class LSTM(Descent[GateState]):
    hidden: int
    p: float
    forget_bias: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(hidden=self.hidden)
        check_positive(p=self.p)
        if not self.inner_lr < 1:
            raise ValueError(f"inner_lr={self.inner_lr}: is where the input gate starts; must be below 1")

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta, like = super().init(net, weights, seed), next(iter(weights.values()))
        return {
            **meta,
            "lstm": lstm_init(seed, like, 4, self.hidden),
            "input_gate": self._gate_init(seed + 1, like.new_full((1,), self.inner_lr).logit()),
            "forget_gate": self._gate_init(seed + 2, like.new_full((1,), self.forget_bias)),
        }

    def _gate_init(self, seed: int, bias: Tensor) -> Params:
        weight = uniform_like(seeded_generator(seed), bias, GATE_BOUND, 1, self.hidden + 2)
        return {"0.weight": weight, "0.bias": bias}

    def init_state(self, meta: Meta, fast: Params) -> GateState:
        zero_P1 = torch.zeros_like(flatten_weights(fast)).unsqueeze(1)
        zero_PH = zero_P1.expand(-1, self.hidden)
        return GateState((zero_PH, zero_PH), zero_P1, zero_P1)

    def update(self, meta: Meta, fast: Params, inner: InnerGradient, state: GateState) -> tuple[Params, GateState]:
        c_P1, gradient_P = flatten_weights(fast).unsqueeze(1), flatten_weights(inner.gradient)
        loss_P = inner.loss.expand_as(gradient_P)
        x_P4 = torch.cat([log_and_sign(gradient_P, self.p), log_and_sign(loss_P, self.p)], dim=1)
        lstm = lstm_cell(meta["lstm"], x_P4, state.lstm)
        i_P1 = dense(meta["input_gate"], torch.cat([lstm[0], c_P1, state.input_gate], dim=1)).sigmoid()
        f_P1 = dense(meta["forget_gate"], torch.cat([lstm[0], c_P1, state.forget_gate], dim=1)).sigmoid()
        c_P1 = f_P1 * c_P1 - i_P1 * gradient_P.unsqueeze(1)
        return unflatten_weights(c_P1.squeeze(1), fast), GateState(lstm, i_P1, f_P1)
