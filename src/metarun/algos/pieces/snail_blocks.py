"""Causal blocks of SNAIL (Mishra et al. 2018), for a sequence whose last place is tried with many items at once.

Rows 0 .. past - 1 of x are the sequence so far; each row after them stands alone at place `past` and knows itself and
the sequence, not its neighbours. This is what a copy of the sequence for every last item would compute, once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from metarun.algos.pieces.dense_lstm import dense_init
from metarun.types import Params


def num_layers(length: int) -> int:
    """The least n for which dilations 1, 2 .. 2^(n-1) let the last of `length` items see the first: ceil(log2)."""
    return max(1, (length - 1).bit_length())


def tc_init(seed: int, like: Tensor, inputs: int, filters: int, layers: int) -> Params:
    """Layer i has an own dilation, 2^i, and reads what all before it have put out."""
    params: Params = {}
    for i in range(layers):
        one = dense_init(seed + i, like, 2 * (inputs + i * filters), 2 * filters)
        params |= {f"{i}.weight": one["0.weight"], f"{i}.bias": one["0.bias"]}
    return params


def tc(params: Params, x_PC: Tensor, past: int) -> Tensor:
    """Dense blocks: x <- (x, tanh(f) * sigmoid(g)), f and g causal convolutions of two taps."""
    for i in range(len(params) // 2):
        taps_PC = torch.cat([earlier(x_PC, past, 2**i), x_PC], dim=1)
        f_PF, g_PF = linear(taps_PC, params[f"{i}.weight"], params[f"{i}.bias"]).chunk(2, dim=1)
        x_PC = torch.cat([x_PC, f_PF.tanh() * g_PF.sigmoid()], dim=1)
    return x_PC


def earlier(x_PC: Tensor, past: int, distance: int) -> Tensor:
    """What stands `distance` places before each row; zeros before the first."""
    shifted = pad(x_PC[:past], (0, 0, distance, 0))[: past + 1]
    return torch.cat([shifted[:past], shifted[past:].expand(len(x_PC) - past, -1)])


def attention_init(seed: int, like: Tensor, inputs: int, keys: int, values: int) -> Params:
    """Keys have no bias: it would add the same to all logits of a row."""
    query, key, value = (dense_init(seed + i, like, inputs, size) for i, size in enumerate((keys, keys, values)))
    return {
        "query.weight": query["0.weight"],
        "query.bias": query["0.bias"],
        "key.weight": key["0.weight"],
        "value.weight": value["0.weight"],
        "value.bias": value["0.bias"],
    }


def attention(params: Params, x_PC: Tensor, past: int) -> Tensor:
    """x <- (x, softmax(q k' / sqrt(keys)) v), over the rows up to a row's own place."""
    q_PK = linear(x_PC, params["query.weight"], params["query.bias"])
    k_PK = linear(x_PC, params["key.weight"])
    v_PV = linear(x_PC, params["value.weight"], params["value.bias"])
    logits_PP = (q_PK @ k_PK.T / math.sqrt(k_PK.shape[1])).masked_fill(~visible(x_PC, past), -math.inf)
    return torch.cat([x_PC, logits_PP.softmax(dim=1) @ v_PV], dim=1)


def visible(x_PC: Tensor, past: int) -> Tensor:
    """Whether row i sees row j: itself, and those of the sequence before it."""
    row_P = torch.arange(len(x_PC), device=x_PC.device)
    before_PP = (row_P < row_P.unsqueeze(1)) & (row_P < past)
    return before_PP | (row_P == row_P.unsqueeze(1))
