"""LSTM meta-learner (Ravi and Larochelle 2017, ICLR, openreview rJY0-Kcll, not on arXiv).

An LSTM whose cell state is a weight of the net learns how the net descends; c_0 = theta, the start, is learned too:

    c_t = f_t c_t-1 - i_t grad,
    i_t = sigmoid(W_I [h_t, c_t-1, i_t-1] + b_I),   f_t = sigmoid(W_F [h_t, c_t-1, f_t-1] + b_F)

for each coordinate by itself, with shared parameters. h_t is the output of a usual LSTM that sees the coordinate's
gradient and the loss, each as two numbers (Andrychowicz 2016, arXiv 1606.04474, app. A). b_F starts large and b_I
small, so that learning starts from gradient descent. `derivatives: first` takes gradient and loss for constants, as the
paper does. A gate cannot pass 1: the rate of a coordinate is at most 1, or the number of ways under `sum_over_ways`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.algos.pieces.coordinatewise import preprocessed, stacked, unstacked
from metarun.algos.pieces.dense_lstm import State, dense, generator, lstm, lstm_init, uniform
from metarun.types import Meta, Net, Params

SPREAD = 0.01  # of the gates' weights at the start: small, so that the biases alone decide


class Memory(NamedTuple):
    """What the LSTM keeps for each coordinate beside the weight."""

    lstm: State  # h_PH, c_PH
    i: Tensor  # the gates before, each P1
    f: Tensor


@dataclass(frozen=True)
class LSTM(Descent):
    hidden: int
    p: float
    forget_bias: float

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_loop.check_steps(hidden=self.hidden)
        inner_loop.check_rate("p", self.p)
        if not self.inner_lr < 1:
            raise ValueError(f"inner_lr={self.inner_lr}: is where the input gate starts; must be below 1")

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta, like = super().init(net, weights, seed), next(iter(weights.values()))
        return {
            **meta,
            "lstm": lstm_init(seed, like, 4, self.hidden),
            "input_gate": self.gate(seed + 1, like.new_full((1,), self.inner_lr).logit()),
            "forget_gate": self.gate(seed + 2, like.new_full((1,), self.forget_bias)),
        }

    def gate(self, seed: int, bias: Tensor) -> Params:
        return {"0.weight": uniform(generator(seed), bias, SPREAD, 1, self.hidden + 2), "0.bias": bias}

    def begin(self, meta: Meta, moving: Params) -> Memory:
        zero_P1 = torch.zeros_like(stacked(moving)).unsqueeze(1)
        zero_PH = zero_P1.expand(-1, self.hidden)
        return Memory((zero_PH, zero_PH), zero_P1, zero_P1)

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        c_P1, gradient_P = stacked(moving).unsqueeze(1), stacked(slope.gradient)
        loss_P = slope.loss.expand_as(gradient_P)
        seen_P4 = torch.cat([preprocessed(gradient_P, self.p), preprocessed(loss_P, self.p)], dim=1)
        inside = lstm(meta["lstm"], seen_P4, state.lstm)
        i_P1 = dense(meta["input_gate"], torch.cat([inside[0], c_P1, state.i], dim=1)).sigmoid()
        f_P1 = dense(meta["forget_gate"], torch.cat([inside[0], c_P1, state.f], dim=1)).sigmoid()
        c_P1 = f_P1 * c_P1 - i_P1 * gradient_P.unsqueeze(1)
        return unstacked(c_P1.squeeze(1), moving), Memory(inside, i_P1, f_P1)
