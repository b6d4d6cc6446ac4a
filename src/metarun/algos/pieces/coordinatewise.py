"""Coordinate-wise learned optimizers: all coordinates of all weights as the rows of one batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarun.types import Params


def flatten_weights(weights: Params) -> Tensor:
    """x_P: all P coordinates, in the order of the dictionary."""
    return torch.cat([value.flatten() for value in weights.values()])


def unflatten_weights(x_P: Tensor, like: Params) -> Params:
    """The inverse of flatten_weights: tensors with the names and shapes of `like`."""
    parts = x_P.split_with_sizes([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for part, (name, value) in zip(parts, like.items(), strict=True)}


def log_and_sign(x_P: Tensor, p: float) -> Tensor:
    """x_P2: numbers of any size as two numbers of about 1 (Andrychowicz 2016, app. A).

    (log|x| / p, sgn x) where |x| >= e^-p, else (-1, e^p x); computed by two clamps.
    """
    least = math.exp(-p)
    return torch.stack([x_P.abs().clamp(min=least).log() / p, (x_P / least).clamp(-1, 1)], dim=-1)
