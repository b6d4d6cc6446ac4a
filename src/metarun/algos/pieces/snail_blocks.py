"""The causal blocks of SNAIL (Mishra et al. 2018), computed for many last items of one sequence at once.

Rows 0 .. past - 1 of x_PC are the sequence so far. Each later row is an alternative item at place `past`: it sees the
sequence and itself, not the other alternatives. The result equals that of a copy of the sequence for each alternative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from metarun.algos.pieces.dense_lstm import dense_init
from metarun.types import Params


def num_tc_layers(length: int) -> int:
    """The least n with 2^n >= length: with dilations 1, 2 .. 2^(n-1) the last of `length` items sees the first."""
    return max(1, (length - 1).bit_length())


def temporal_convolution_init(seed: int, like: Tensor, inputs: int, filters: int, layers: int) -> Params:
    """Layer i has dilation 2^i. Its inputs are the block's inputs and the outputs of all layers before it."""
    params: Params = {}
    for i in range(layers):
        layer = dense_init(seed + i, like, 2 * (inputs + i * filters), 2 * filters)
        params |= {f"{i}.weight": layer["0.weight"], f"{i}.bias": layer["0.bias"]}
    return params


def temporal_convolution(params: Params, x_PC: Tensor, past: int) -> Tensor:
    """Dense blocks: x <- (x, tanh(f) * sigmoid(g)), where f and g are causal convolutions of two taps."""
    for i in range(len(params) // 2):
        taps_PC = torch.cat([rows_before(x_PC, past, 2**i), x_PC], dim=1)
        f_PF, g_PF = linear(taps_PC, params[f"{i}.weight"], params[f"{i}.bias"]).chunk(2, dim=1)
        x_PC = torch.cat([x_PC, f_PF.tanh() * g_PF.sigmoid()], dim=1)
    return x_PC


def rows_before(x_PC: Tensor, past: int, distance: int) -> Tensor:
    """For each row the row `distance` places before it; zeros before the start of the sequence."""
    shifted = pad(x_PC[:past], (0, 0, distance, 0))[: past + 1]
    return torch.cat([shifted[:past], shifted[past:].expand(len(x_PC) - past, -1)])


def causal_attention_init(seed: int, like: Tensor, inputs: int, keys: int, values: int) -> Params:
    """Keys have no bias: it would add the same number to all logits of a row."""
    query, key, value = (dense_init(seed + i, like, inputs, size) for i, size in enumerate((keys, keys, values)))
    return {
        "query.weight": query["0.weight"],
        "query.bias": query["0.bias"],
        "key.weight": key["0.weight"],
        "value.weight": value["0.weight"],
        "value.bias": value["0.bias"],
    }


def causal_attention(params: Params, x_PC: Tensor, past: int) -> Tensor:
    """x <- (x, softmax(q k' / sqrt(keys)) v), over the rows up to each row's place."""
    q_PK = linear(x_PC, params["query.weight"], params["query.bias"])
    k_PK = linear(x_PC, params["key.weight"])
    v_PV = linear(x_PC, params["value.weight"], params["value.bias"])
    logits_PP = (q_PK @ k_PK.T / math.sqrt(k_PK.shape[1])).masked_fill(~causal_mask(x_PC, past), -math.inf)
    return torch.cat([x_PC, logits_PP.softmax(dim=1) @ v_PV], dim=1)


def causal_mask(x_PC: Tensor, past: int) -> Tensor:
    """mask_PP[i, j]: whether row i sees row j, which is itself or a row of the sequence before it."""
    row_P = torch.arange(len(x_PC), device=x_PC.device)
    before_PP = (row_P < row_P.unsqueeze(1)) & (row_P < past)
    return before_PP | (row_P == row_P.unsqueeze(1))
