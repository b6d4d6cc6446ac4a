"""The 12-layer residual body of Mishra 2018 in the shape that Lee 2019 (MetaOptNet) gave it, without its head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, max_pool2d

from metarun.models.layers import Norm, norm_layer, pool_maps, require_choice, require_image, require_positive

LEAKY_SLOPE = 0.1  # of the leaky relu, Lee 2019


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions, plus a 1x1 convolution as shortcut; halves the map by a 2x2 max-pool."""

    def __init__(self, channels: int, width: int, norm: Norm, eps: float, momentum: float) -> None:
        super().__init__()
        inputs = (channels, width, width)
        self.convs = nn.ModuleList(nn.Conv2d(size, width, 3, padding=1, bias=False) for size in inputs)
        self.norms = nn.ModuleList(norm_layer(norm, width, eps, momentum) for _ in inputs)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), norm_layer(norm, width, eps, momentum))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        residual = self.shortcut(x)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = leaky_relu(norm(conv(x)), LEAKY_SLOPE)
        x = self.norms[-1](self.convs[-1](x))
        return max_pool2d(leaky_relu(x + residual, LEAKY_SLOPE), 2)


class ResNet12(nn.Module):
    """x_BCHW -> x_BD, where D is the last of `widths`, times the number of pixels left unless pooling=mean.

    Of 84x84 pixels 5x5 are left, of 28x28 one.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: tuple[int, ...],
        pooling: Literal["flatten", "mean"],
        norm: Norm,
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__()
        require_image(shape, "ResNet12")
        if not widths:
            raise ValueError("widths=[]: need at least one block")
        require_positive(widths=min(widths))
        require_choice("pooling", pooling, ("flatten", "mean"))
        channels, height, breadth = shape
        if min(height, breadth) < 2 ** len(widths):
            raise ValueError(f"widths={list(widths)}: {height}x{breadth} cannot be halved so often; use fewer")
        inputs = [channels, *widths[:-1]]
        blocks = (ResidualBlock(size, width, norm, eps, momentum) for size, width in zip(inputs, widths, strict=True))
        self.blocks = nn.Sequential(*blocks)
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        return pool_maps(self.blocks(x), self.pooling)
