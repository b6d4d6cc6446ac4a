"""Max-pooling by 2, as a choice of one value in four and as its inverse: each one's derivative is the other.

Inductor fuses both with the operations around them. It cannot fuse the indices of torch's own max-pooling.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.engine.autograd_context import AutogradContext

POOL_SIZE = 2
PLAIN_POOLING = {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}


class PoolArgmax(NamedTuple):
    """Where the largest of four values is: in the lower row or not, in the right column or not."""

    lower: Tensor
    right: Tensor


def max_pool2d(
    x_BCHW: Tensor, kernel_size: object, stride: object = None, *others: object, **options: object
) -> Tensor | None:
    """torch.nn.functional.max_pool2d for windows of 2 by 2 side by side."""
    plain = stride is None and not others and options.items() >= PLAIN_POOLING.items()
    if not plain or kernel_size != POOL_SIZE:
        return None
    out: Tensor = PoolGather.apply(x_BCHW, *_argmax(x_BCHW.detach()))
    return out


def _corners(x_BCHW: Tensor) -> list[Tensor]:
    """The four values of each window, as four maps of the output's size; without an odd last row or column."""
    height, width = (size // POOL_SIZE * POOL_SIZE for size in x_BCHW.shape[-2:])
    corners = [(i, j) for i in range(POOL_SIZE) for j in range(POOL_SIZE)]
    return [x_BCHW[..., i:height:POOL_SIZE, j:width:POOL_SIZE] for i, j in corners]


def _argmax(x_BCHW: Tensor) -> PoolArgmax:
    """The first of equal values, as torch's own max-pooling chooses."""
    a, b, c, d = _corners(x_BCHW)
    lower = torch.maximum(c, d) > torch.maximum(a, b)
    return PoolArgmax(lower, torch.where(lower, d > c, b > a))


class PoolContext(AutogradContext, Protocol):
    size: torch.Size


class PoolGather(torch.autograd.Function):
    """(x, argmax) -> y: one value of every four"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor, right: Tensor) -> Tensor:
        a, b, c, d = _corners(x)
        return torch.where(lower, torch.where(right, d, c), torch.where(right, b, a))

    @staticmethod
    def setup_context(ctx: PoolContext, inputs: tuple[Tensor, Tensor, Tensor], _output: Tensor) -> None:
        x, *argmax = inputs
        ctx.size = x.shape[-2:]
        ctx.save_for_backward(*argmax)

    @staticmethod
    def backward(ctx: PoolContext, dy: Tensor) -> tuple[Tensor, None, None]:
        return PoolScatter.apply(dy, *ctx.saved_tensors, ctx.size), None, None


class PoolScatter(torch.autograd.Function):
    """(dy, argmax) -> dx: zero where x was not chosen"""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, lower: Tensor, right: Tensor, size: torch.Size) -> Tensor:
        batch, channels, height, width = dy.shape
        is_second = torch.arange(POOL_SIZE, device=dy.device) == 1

        def spread(value: Tensor) -> Tensor:
            """[B, H, 1, W, 1, C]: channels last, as convolutions want it."""
            return value.permute(0, 2, 3, 1).reshape(batch, height, 1, width, 1, channels)

        in_row = spread(lower) == is_second.reshape(POOL_SIZE, 1, 1, 1)
        in_column = spread(right) == is_second.reshape(POOL_SIZE, 1)
        dx = torch.where(in_row & in_column, spread(dy), 0.0)
        dx = dx.reshape(batch, POOL_SIZE * height, POOL_SIZE * width, channels).permute(0, 3, 1, 2)
        odd_row, odd_column = size[0] - POOL_SIZE * height, size[1] - POOL_SIZE * width
        return pad(dx, (0, odd_column, 0, odd_row)) if odd_row or odd_column else dx

    @staticmethod
    def setup_context(ctx: PoolContext, inputs: tuple[Tensor, Tensor, Tensor, torch.Size], _output: Tensor) -> None:
        _, lower, right, _ = inputs
        ctx.save_for_backward(lower, right)

    @staticmethod
    def backward(ctx: PoolContext, v: Tensor) -> tuple[Tensor, None, None, None]:
        return PoolGather.apply(v, *ctx.saved_tensors), None, None, None
