"""Max-pooling by 2 whose every derivative picks one of four values or puts one back among four zeros.

A code generator fuses both with what stands around them; the indices of torch's own it cannot see through.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

SIZE = 2


class Place(NamedTuple):
    """Which of the four an output is: one bit for the row, one for the column."""

    lower: Tensor
    right: Tensor


def max_pool2d(x_BCHW: Tensor) -> Tensor:
    out: Tensor = Pick.apply(x_BCHW, *_largest(x_BCHW.detach()))
    return out


def _corners(x_BCHW: Tensor) -> list[Tensor]:
    """The four values under each output, each a map of the output's size; a row or column left over is left out."""
    height, breadth = (size // SIZE * SIZE for size in x_BCHW.shape[-2:])
    return [x_BCHW[..., i:height:SIZE, j:breadth:SIZE] for i in range(SIZE) for j in range(SIZE)]


def _largest(x_BCHW: Tensor) -> Place:
    """Of equal values the first, as torch's own chooses."""
    a, b, c, d = _corners(x_BCHW)
    lower = torch.maximum(c, d) > torch.maximum(a, b)
    return Place(lower, torch.where(lower, d > c, b > a))


class Pick(torch.autograd.Function):
    """(x, place) -> the chosen one of every four"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor, right: Tensor) -> Any:
        a, b, c, d = _corners(x)
        return torch.where(lower, torch.where(right, d, c), torch.where(right, b, a))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        x, *place = inputs
        ctx.size = x.shape[-2:]
        ctx.save_for_backward(*place)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return Put.apply(dy, *ctx.saved_tensors, ctx.size), None, None


class Put(torch.autograd.Function):
    """(dy, place) -> dx, zero where nothing was picked"""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, lower: Tensor, right: Tensor, size: tuple[int, int]) -> Any:
        batch, channels, height, breadth = dy.shape
        second = torch.arange(SIZE, device=dy.device) == 1

        def spread(value: Tensor) -> Tensor:
            """Channels last, as convolutions want it."""
            return value.permute(0, 2, 3, 1).reshape(batch, height, 1, breadth, 1, channels)

        here = (spread(lower) == second.reshape(SIZE, 1, 1, 1)) & (spread(right) == second.reshape(SIZE, 1))
        dx = torch.where(here, spread(dy), 0.0).reshape(batch, SIZE * height, SIZE * breadth, channels)
        dx = dx.permute(0, 3, 1, 2)
        below, beside = size[0] - SIZE * height, size[1] - SIZE * breadth
        return pad(dx, (0, beside, 0, below)) if below or beside else dx

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        _, *place, _ = inputs
        ctx.save_for_backward(*place)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return Pick.apply(v, *ctx.saved_tensors), None, None, None
