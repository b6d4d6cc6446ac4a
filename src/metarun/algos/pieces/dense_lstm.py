"""Small networks that algorithms own beside the backbone, as functions of their weights: dense layers, an LSTM cell."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from metarun.types import Params

LSTMState = tuple[Tensor, Tensor]  # hidden and cell state, each x_BH


def uniform_like(generator: torch.Generator, like: Tensor, bound: float, *shape: int) -> Tensor:
    """Numbers drawn from -bound .. bound, with the type and device of `like`."""
    return ((2 * torch.rand(shape, generator=generator) - 1) * bound).to(like)


def seeded_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_init(seed: int, like: Tensor, *sizes: int) -> Params:
    """Weights of dense layers from sizes[0] inputs to sizes[-1] outputs, initialised as nn.Linear is."""
    generator, params = seeded_generator(seed), {}
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        params[f"{i}.weight"] = uniform_like(generator, like, 1 / math.sqrt(inputs), outputs, inputs)
        params[f"{i}.bias"] = uniform_like(generator, like, 1 / math.sqrt(inputs), outputs)
    return params


def dense(params: Params, x_BD: Tensor) -> Tensor:
    """Dense layers with a relu between them."""
    count = len(params) // 2
    for i in range(count):
        x_BD = linear(x_BD, params[f"{i}.weight"], params[f"{i}.bias"])
        x_BD = relu(x_BD) if i < count - 1 else x_BD
    return x_BD


def lstm_init(seed: int, like: Tensor, inputs: int, hidden: int) -> Params:
    generator, bound = seeded_generator(seed), 1 / math.sqrt(hidden)
    return {
        "input": uniform_like(generator, like, bound, 4 * hidden, inputs),
        "hidden": uniform_like(generator, like, bound, 4 * hidden, hidden),
        "bias": uniform_like(generator, like, bound, 4 * hidden),
    }


def lstm_cell(params: Params, x_BD: Tensor, state: LSTMState) -> LSTMState:
    """One step (Hochreiter and Schmidhuber 1997, with forget gates). Gates are in torch's order: i, f, g, o."""
    h_BH, c_BH = state
    gates = linear(x_BD, params["input"], params["bias"]) + linear(h_BH, params["hidden"])
    i_BH, f_BH, g_BH, o_BH = gates.chunk(4, dim=-1)
    c_BH = f_BH.sigmoid() * c_BH + i_BH.sigmoid() * g_BH.tanh()
    return o_BH.sigmoid() * c_BH.tanh(), c_BH
