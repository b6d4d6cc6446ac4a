"""The four-block convolutional body of the few-shot papers (Vinyals 2016, Finn 2017), without its head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, relu

from metarun.models.layers import (
    BatchNorm,
    Norm,
    norm_layer,
    pool_maps,
    require_choice,
    require_image,
    require_positive,
)


class ConvBlock(nn.Module):
    """3x3 convolution, norm, relu; halves the map by the stride of the convolution or by a 2x2 max-pool."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm, eps: float, momentum: float) -> None:
        super().__init__()
        # Batch norm subtracts the mean, and a bias with it.
        self.conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=norm != "batch")
        self.norm = norm_layer(norm, width, eps, momentum)
        self.pools = stride == 1
        nn.init.xavier_uniform_(self.conv.weight)  # as in Finn 2017's code
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.pools:
            return relu(self.norm(self.conv(x)))
        if isinstance(self.norm, BatchNorm):
            return self._pool_before_norm(x, self.norm)
        return max_pool2d(relu(self.norm(self.conv(x))), 2)

    def _pool_before_norm(self, x: Tensor, norm: BatchNorm) -> Tensor:
        """max_pool2d(relu(norm(conv(x)))), with the pool before norm and relu: a quarter of the values to normalise.

        Norm and relu are increasing where the scale is positive, so they commute with the maximum. Channels with a
        negative scale have their sign changed first.
        """
        assert norm.weight is not None
        sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0).to(x.dtype)
        y = conv2d(x, self.conv.weight * sign.reshape(-1, 1, 1, 1), padding=1)
        mean, var = norm.moments(y, sign)
        return relu(norm.normalised(max_pool2d(y, 2) * sign.reshape(-1, 1, 1), mean, var))


class Conv4(nn.Module):
    """x_BCHW -> x_BD, where D is `width` times the number of pixels left, or `width` with pooling=mean."""

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        layers: int,
        downsample: Literal["stride", "pool"],
        pooling: Literal["flatten", "mean"],
        norm: Norm,
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__()
        require_image(shape, "Conv4")
        require_positive(width=width, layers=layers)
        require_choice("downsample", downsample, ("stride", "pool"))
        require_choice("pooling", pooling, ("flatten", "mean"))
        channels, height, breadth = shape
        if downsample == "pool" and min(height, breadth) < 2**layers:
            raise ValueError(f"layers={layers}: {height}x{breadth} cannot be halved so often; use fewer")
        stride = 2 if downsample == "stride" else 1
        inputs = [channels] + [width] * (layers - 1)
        self.blocks = nn.Sequential(*(ConvBlock(size, width, stride, norm, eps, momentum) for size in inputs))
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        return pool_maps(self.blocks(x), self.pooling)
