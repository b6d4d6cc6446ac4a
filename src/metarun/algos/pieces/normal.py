"""The normal distribution as a network's output: a mean and a standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def bounded_sigma(raw: Tensor, floor: float) -> Tensor:
    """A standard deviation above `floor`. Without the floor the density at a point that is hit exactly is unbounded."""
    return floor + (1 - floor) * softplus(raw)


def negative_log_likelihood(y: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """-log N(y; mean, sigma^2), averaged over the elements."""
    assert y.shape == mean.shape, f"means {tuple(mean.shape)} for targets {tuple(y.shape)}"
    return (((y - mean) / sigma).square() / 2 + torch.log(sigma) + math.log(2 * math.pi) / 2).mean()
