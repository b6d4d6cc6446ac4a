"""Weights fitted to one support set by stochastic gradient descent, with the steps of torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from metarun.types import Consts, Params, StepIndex, Unroll

FitLoss = Callable[[Params, Consts, StepIndex], Tensor]
"""(weights, data, number of the step) -> loss of one mini-batch."""


class SGDRule(NamedTuple):
    """The numbers of torch.optim.SGD: d = gradient + weight_decay w;  b = d, later momentum b + (1 - dampening) d."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float


class SGDCarry(NamedTuple):
    weights: Params
    velocity: Params


def fit_by_sgd(
    loss: FitLoss[Consts], start: Params, data: Consts, rule: SGDRule, num_steps: int, unroll: Unroll
) -> Params:
    velocity = {name: torch.zeros_like(value) for name, value in start.items()}
    return unroll(partial(_sgd_step, loss, rule), SGDCarry(start, velocity), data, num_steps).weights


def _sgd_step(loss: FitLoss[Consts], rule: SGDRule, carry: SGDCarry, data: Consts, k: StepIndex) -> SGDCarry:
    gradient = grad(loss)(carry.weights, data, k)
    share = 1 - rule.dampening * (k > 0)  # torch dampens from the second step on
    velocity = {
        name: rule.momentum * carry.velocity[name] + share * (gradient[name] + rule.weight_decay * w)
        for name, w in carry.weights.items()
    }
    return SGDCarry({name: w - rule.lr * velocity[name] for name, w in carry.weights.items()}, velocity)
