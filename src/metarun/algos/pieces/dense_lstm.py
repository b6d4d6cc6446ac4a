"""Little networks that algorithms own beside the net, as pure functions of a dictionary of weights."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from metarun.types import Params

State = tuple[Tensor, Tensor]  # hidden and cell of an LSTM, each x_BH


def uniform(dice: torch.Generator, like: Tensor, bound: float, *shape: int) -> Tensor:
    """Numbers in -bound .. bound, of the type and on the device of `like`."""
    return ((2 * torch.rand(shape, generator=dice) - 1) * bound).to(like)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_init(seed: int, like: Tensor, *sizes: int) -> Params:
    """Layers from sizes[0] inputs to sizes[-1] outputs, spread as torch spreads those of nn.Linear."""
    dice, params = generator(seed), {}
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        params[f"{i}.weight"] = uniform(dice, like, 1 / math.sqrt(inputs), outputs, inputs)
        params[f"{i}.bias"] = uniform(dice, like, 1 / math.sqrt(inputs), outputs)
    return params


def dense(params: Params, x_BD: Tensor) -> Tensor:
    """Layer after layer, relu between them."""
    count = len(params) // 2
    for i in range(count):
        x_BD = linear(x_BD, params[f"{i}.weight"], params[f"{i}.bias"])
        x_BD = relu(x_BD) if i < count - 1 else x_BD
    return x_BD


def lstm_init(seed: int, like: Tensor, inputs: int, hidden: int) -> Params:
    dice, bound = generator(seed), 1 / math.sqrt(hidden)
    return {
        "input": uniform(dice, like, bound, 4 * hidden, inputs),
        "hidden": uniform(dice, like, bound, 4 * hidden, hidden),
        "bias": uniform(dice, like, bound, 4 * hidden),
    }


def lstm(params: Params, x_BD: Tensor, state: State) -> State:
    """One step (Hochreiter and Schmidhuber 1997, with forget gates), the gates in torch's order."""
    h_BH, c_BH = state
    gates = linear(x_BD, params["input"], params["bias"]) + linear(h_BH, params["hidden"])
    i_BH, f_BH, g_BH, o_BH = gates.chunk(4, dim=-1)
    c_BH = f_BH.sigmoid() * c_BH + i_BH.sigmoid() * g_BH.tanh()
    return o_BH.sigmoid() * c_BH.tanh(), c_BH
