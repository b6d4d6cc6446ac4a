"""A normal distribution as two outputs of a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def bounded(raw: Tensor, floor: float) -> Tensor:
    """A standard deviation above `floor`: without it, the density of points hit exactly knows no limit."""
    return floor + (1 - floor) * softplus(raw)


def negative_log_likelihood(y: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Mean over the elements of -log N(y; mean, sigma^2)."""
    assert y.shape == mean.shape, f"means {tuple(mean.shape)} for targets {tuple(y.shape)}"
    return (((y - mean) / sigma).square() / 2 + torch.log(sigma) + math.log(2 * math.pi) / 2).mean()
