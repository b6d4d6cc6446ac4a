"""Full context embeddings: items embedded with regard to the whole support set (Vinyals et al. 2016, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.algos.pieces.dense_lstm import lstm_cell
from metarun.types import Params


def bidirectional_embeddings(forward: Params, backward: Params, z_SD: Tensor) -> Tensor:
    """g_SD: each embedding plus the outputs of two LSTMs that read the support from either end."""
    return z_SD + _lstm_outputs(forward, z_SD) + _lstm_outputs(backward, z_SD.flip(0)).flip(0)


def attention_lstm(params: Params, z_QD: Tensor, g_SD: Tensor, steps: int) -> Tensor:
    """f_QD: the hidden state of an LSTM that attends to the support between its steps."""
    h_QD = c_QD = torch.zeros_like(z_QD)
    for _ in range(steps):
        r_QD = (h_QD @ g_SD.T).softmax(dim=1) @ g_SD
        h_QD, c_QD = lstm_cell(params, torch.cat([z_QD, r_QD], dim=1), (h_QD, c_QD))
        h_QD = h_QD + z_QD
    return h_QD


def _lstm_outputs(params: Params, z_SD: Tensor) -> Tensor:
    h_1D = c_1D = torch.zeros_like(z_SD[:1])
    outputs = []
    for z_1D in torch.split(z_SD, 1):
        h_1D, c_1D = lstm_cell(params, z_1D, (h_1D, c_1D))
        outputs.append(h_1D)
    return torch.cat(outputs)
