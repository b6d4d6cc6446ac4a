"""A classifier fitted to one support set by plain optimisation: the steps of torch.optim.SGD and a head's start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from metarun.types import Params, Unroll

Loss = Callable[[Params, Any, Any], Tensor]  # of weights, data and the number of the step


class SGD(NamedTuple):
    """With torch's meaning of each number: d = gradient + decay w;  b = d, later momentum b + (1 - dampening) d."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float


class Fit(NamedTuple):
    weights: Params
    velocity: Params


def fit(loss: Loss, start: Params, data: Any, rule: SGD, num_steps: int, unroll: Unroll) -> Params:
    velocity = {name: torch.zeros_like(value) for name, value in start.items()}
    end: Fit = unroll(partial(_step, loss, rule), Fit(start, velocity), data, num_steps)
    return end.weights


def _step(loss: Loss, rule: SGD, carry: Fit, data: Any, k: Any) -> Fit:
    gradient = grad(loss)(carry.weights, data, k)
    share = 1 - rule.dampening * (k > 0)  # torch dampens from the second step on
    velocity = {
        name: rule.momentum * carry.velocity[name] + share * (gradient[name] + rule.weight_decay * w)
        for name, w in carry.weights.items()
    }
    return Fit({name: w - rule.lr * velocity[name] for name, w in carry.weights.items()}, velocity)
