"""Normalisation layers that stay exact under vmap and nested differentiation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["batch", "group", "layer", "none"]
CHANNELS_PER_GROUP = 16  # Wu and He 2018 (group normalisation), table 3: the best of the fixed sizes


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of its input, or by `fixed_stats`; `used_stats` are those of the last call.

    Mean, biased variance, gamma and beta are computed here, since vmap over torch's own layer gives a wrong
    second-order gradient. `used_stats` hold the biased variance: used again as `fixed_stats` they give the same output.
    """

    fixed_stats: tuple[Tensor, Tensor] | None  # mean and variance of each channel
    used_stats: tuple[Tensor, Tensor] | None

    def __init__(self, channels: int, eps: float, momentum: float, affine: bool) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.fixed_stats = None
        self.used_stats = None

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x, *self.moments(x))

    def moments(self, x: Tensor, sign: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalise by. With `sign`, x is sign * y for each channel, and they are those of y."""
        if self.fixed_stats is None:
            var, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
            mean = mean if sign is None else mean * sign
        else:
            mean, var = self.fixed_stats
        self.used_stats = (mean, var)
        return mean, var

    def normalised(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        broadcast = (-1,) + (1,) * (x.dim() - 2)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = (x - mean.reshape(broadcast)) * scale.reshape(broadcast)
        return out if self.bias is None else out + self.bias.reshape(broadcast)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


def norm_layer(norm: Norm, channels: int, eps: float, momentum: float) -> nn.Module:
    if norm == "batch":
        return BatchNorm(channels, eps, momentum, affine=True)
    if norm == "group":
        groups = math.gcd(channels, max(1, channels // CHANNELS_PER_GROUP))
        return nn.GroupNorm(groups, channels, eps)
    if norm == "layer":
        return nn.GroupNorm(1, channels, eps)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm={norm}: choose batch, group, layer or none")


def require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: need at least 1")


def pool_maps(maps_BDHW: Tensor, pooling: Literal["flatten", "mean"]) -> Tensor:
    return maps_BDHW.mean(dim=(2, 3)) if pooling == "mean" else maps_BDHW.flatten(1)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value}: choose one of {', '.join(choices)}")


def require_image(shape: tuple[int, ...], model: str) -> None:
    if len(shape) != 3:
        raise ValueError(f"_target_={model}: needs images, the data has items of shape {shape}; choose model=mlp")
