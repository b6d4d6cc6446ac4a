"""Learned optimizers see a weight coordinate by coordinate: the coordinates of all weights as rows of one batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarun.types import Params


def stacked(params: Params) -> Tensor:
    """All coordinates x_P, in the dictionary's order."""
    return torch.cat([value.flatten() for value in params.values()])


def unstacked(x_P: Tensor, like: Params) -> Params:
    """The weights whose coordinates these are; the way back from `stacked`."""
    parts = x_P.split_with_sizes([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for part, (name, value) in zip(parts, like.items(), strict=True)}


def preprocessed(x_P: Tensor, p: float) -> Tensor:
    """Numbers of any size as two of about 1: x_P2 (Andrychowicz 2016, app. A).

    (log|x| / p, sgn x) where |x| >= e^-p, else (-1, e^p x); which is two clamps.
    """
    least = math.exp(-p)
    return torch.stack([x_P.abs().clamp(min=least).log() / p, (x_P / least).clamp(-1, 1)], dim=-1)
