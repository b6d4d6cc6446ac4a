"""Convolutions whose every derivative is a convolution again, or its gradient by input or by weight.

torch's own second derivative by the weight is a forward convolution with a kernel as large as the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten
DIMS = 4  # of its images and its weights
FEW = 32  # pixels given out, images included: 27 us as a product, 47 to 70 as a convolution, 64 channels, one thread


class Sizes(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def sizes(stride: Any, padding: Any, dilation: Any, groups: int) -> Sizes:
    return Sizes(_pair(stride), _pair(padding), _pair(dilation), groups)


def conv2d(x: Tensor, w: Tensor, sizes: Sizes) -> Tensor:
    high, wide = _output(x, w, sizes)
    # A single channel leaves open in which order memory holds a convolution's output.
    if x.shape[1] == 1 or (len(x) * high * wide <= FEW and sizes.groups == 1):
        return _product(x, w, sizes)
    out: Tensor = Forward.apply(x, w, sizes)
    return out


def _output(x: Tensor, w: Tensor, sizes: Sizes) -> list[int]:
    spans = zip(x.shape[2:], w.shape[2:], sizes.stride, sizes.padding, sizes.dilation, strict=True)
    return [(size + 2 * pads - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pads, gap in spans]


def _product(x: Tensor, w: Tensor, sizes: Sizes) -> Tensor:
    """By a product of matrices, channels last."""
    high, wide = _output(x, w, sizes)
    outputs, channels, rows, columns = w.shape
    (down, right), (top, left), (below, beside), _ = sizes
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))

    def under(i: int, j: int) -> Tensor:
        """What tap (i, j) sees."""
        first, start = i * below, j * beside
        return padded[:, first : first + down * (high - 1) + 1 : down, start : start + right * (wide - 1) + 1 : right]

    seen = torch.stack([under(i, j) for i in range(rows) for j in range(columns)], dim=3).reshape(-1, w[0].numel())
    matrix = w.permute(0, 2, 3, 1).reshape(outputs, -1).T
    # Many rows of few numbers: the gradient by a transposed matrix is four times as slow.
    out = seen @ (matrix.contiguous() if channels == 1 else matrix)
    return out.reshape(len(x), high, wide, outputs).permute(0, 3, 1, 2)


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else [*size, *size] if len(size) == 1 else list(size)


class Forward(torch.autograd.Function):
    """(x, w) -> y"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, sizes: Sizes) -> Any:
        stride, padding, dilation, groups = sizes
        return aten.convolution(x, w, None, stride, padding, dilation, False, [0, 0], groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        x, w, ctx.sizes = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        by_x, by_w, _ = ctx.needs_input_grad
        dx = ByInput.apply(dy, w, x, ctx.sizes) if by_x else None
        return dx, ByWeight.apply(dy, x, w, ctx.sizes) if by_w else None, None


class ByInput(torch.autograd.Function):
    """(dy, w) -> dx; of x only the shape counts."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, w: Tensor, x: Tensor, sizes: Sizes) -> Any:
        return _backward(dy, x, w, sizes, [True, False, False])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        dy, w, _, ctx.sizes = inputs
        ctx.save_for_backward(dy, w)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        dy, w = ctx.saved_tensors
        by_dy, by_w, *_ = ctx.needs_input_grad
        along = Forward.apply(v, w, ctx.sizes) if by_dy else None
        return along, ByWeight.apply(dy, v, w, ctx.sizes) if by_w else None, None, None


class ByWeight(torch.autograd.Function):
    """(dy, x) -> dw; of w only the shape counts."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, x: Tensor, w: Tensor, sizes: Sizes) -> Any:
        return _backward(dy, x, w, sizes, [False, True, False])[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        dy, x, _, ctx.sizes = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        dy, x = ctx.saved_tensors
        by_dy, by_x, *_ = ctx.needs_input_grad
        along = Forward.apply(x, v, ctx.sizes) if by_dy else None
        return along, ByInput.apply(dy, v, x, ctx.sizes) if by_x else None, None, None


def _backward(dy: Tensor, x: Tensor, w: Tensor, sizes: Sizes, wanted: list[bool]) -> Any:
    stride, padding, dilation, groups = sizes
    return aten.convolution_backward(dy, x, w, None, stride, padding, dilation, False, [0, 0], groups, wanted)
