"""Embeddings in the light of a whole support set: the two networks of Vinyals et al. 2016, appendix A."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.algos.pieces.dense_lstm import lstm
from metarun.types import Params


def both_ways(forward: Params, backward: Params, z_SD: Tensor) -> Tensor:
    """Each item plus what an LSTM has seen up to it from either end; the order of the items matters."""
    return z_SD + _along(forward, z_SD) + _along(backward, z_SD.flip(0)).flip(0)


def attentive(params: Params, z_QD: Tensor, g_SD: Tensor, steps: int) -> Tensor:
    """Each query plus what an LSTM makes of it that reads from the support between its steps."""
    h_QD = c_QD = torch.zeros_like(z_QD)
    for _ in range(steps):
        r_QD = (h_QD @ g_SD.T).softmax(dim=1) @ g_SD
        h_QD, c_QD = lstm(params, torch.cat([z_QD, r_QD], dim=1), (h_QD, c_QD))
        h_QD = h_QD + z_QD
    return h_QD


def _along(params: Params, z_SD: Tensor) -> Tensor:
    h_1D = c_1D = torch.zeros_like(z_SD[:1])
    seen = []
    for z_1D in torch.split(z_SD, 1):
        h_1D, c_1D = lstm(params, z_1D, (h_1D, c_1D))
        seen.append(h_1D)
    return torch.cat(seen)
