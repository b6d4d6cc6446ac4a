"""Convolution, its gradient by the input and its gradient by the weight: each one's derivatives are among the three.

torch's own second derivative by the weight is a forward convolution with a kernel as large as the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.engine.autograd_context import AutogradContext

aten = torch.ops.aten
IMAGE_DIMS = 4  # images are [B, C, H, W], and weights have four dimensions too
# Output pixels of all images up to which a matrix product is faster: 27 us against 47 to 70, 64 channels, one thread.
MATMUL_PIXELS = 32


class ConvOptions(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """torch.conv2d for batches of images with padding in numbers."""
    if isinstance(padding, str) or x.dim() != IMAGE_DIMS:
        return None
    out = _convolve(x, w, ConvOptions(_pair(stride), _pair(padding), _pair(dilation), groups))
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def _pair(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else [*size, *size] if len(size) == 1 else list(size)


def _convolve(x: Tensor, w: Tensor, options: ConvOptions) -> Tensor:
    height, width = _output_size(x, w, options)
    # With a single channel it is undefined in which memory format a convolution's output is.
    if x.shape[1] == 1 or (len(x) * height * width <= MATMUL_PIXELS and options.groups == 1):
        return _conv2d_by_matmul(x, w, options)
    out: Tensor = ConvForward.apply(x, w, options)
    return out


def _output_size(x: Tensor, w: Tensor, options: ConvOptions) -> list[int]:
    axes = zip(x.shape[2:], w.shape[2:], options.stride, options.padding, options.dilation, strict=True)
    return [(size + 2 * pads - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pads, gap in axes]


def _conv2d_by_matmul(x: Tensor, w: Tensor, options: ConvOptions) -> Tensor:
    """Patches of the image times the kernels, in channels-last format."""
    height, width = _output_size(x, w, options)
    outputs, channels, rows, columns = w.shape
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), _ = options
    padded_BHWC = pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h))

    def under_tap(i: int, j: int) -> Tensor:
        """The pixel under weight (i, j) of the kernel, for each output pixel."""
        top, left = i * dilation_h, j * dilation_w
        return padded_BHWC[
            :, top : top + stride_h * (height - 1) + 1 : stride_h, left : left + stride_w * (width - 1) + 1 : stride_w
        ]

    taps = [under_tap(i, j) for i in range(rows) for j in range(columns)]
    patches = torch.stack(taps, dim=3).reshape(-1, w[0].numel())
    matrix = w.permute(0, 2, 3, 1).reshape(outputs, -1).T
    # With one channel there are many rows of few numbers: the gradient by a transposed matrix is four times as slow.
    out = patches @ (matrix.contiguous() if channels == 1 else matrix)
    return out.reshape(len(x), height, width, outputs).permute(0, 3, 1, 2)


class ConvContext(AutogradContext, Protocol):
    options: ConvOptions


class ConvForward(torch.autograd.Function):
    """(x, w) -> y"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, options: ConvOptions) -> Tensor:
        stride, padding, dilation, groups = options
        y: Tensor = aten.convolution(x, w, None, stride, padding, dilation, False, [0, 0], groups)
        return y

    @staticmethod
    def setup_context(ctx: ConvContext, inputs: tuple[Tensor, Tensor, ConvOptions], _output: Tensor) -> None:
        x, w, ctx.options = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: ConvContext, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        by_x, by_w, _ = ctx.needs_input_grad
        dx = ConvInputGradient.apply(dy, w, x, ctx.options) if by_x else None
        return dx, ConvWeightGradient.apply(dy, x, w, ctx.options) if by_w else None, None


class ConvInputGradient(torch.autograd.Function):
    """(dy, w) -> dx; of x only the shape is used."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, w: Tensor, x: Tensor, options: ConvOptions) -> Tensor:
        return _convolution_backward(dy, x, w, options, wanted=0)

    @staticmethod
    def setup_context(ctx: ConvContext, inputs: tuple[Tensor, Tensor, Tensor, ConvOptions], _output: Tensor) -> None:
        dy, w, _, ctx.options = inputs
        ctx.save_for_backward(dy, w)

    @staticmethod
    def backward(ctx: ConvContext, v: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        dy, w = ctx.saved_tensors
        by_dy, by_w, *_ = ctx.needs_input_grad
        along = ConvForward.apply(v, w, ctx.options) if by_dy else None
        return along, ConvWeightGradient.apply(dy, v, w, ctx.options) if by_w else None, None, None


class ConvWeightGradient(torch.autograd.Function):
    """(dy, x) -> dw; of w only the shape is used."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, x: Tensor, w: Tensor, options: ConvOptions) -> Tensor:
        return _convolution_backward(dy, x, w, options, wanted=1)

    @staticmethod
    def setup_context(ctx: ConvContext, inputs: tuple[Tensor, Tensor, Tensor, ConvOptions], _output: Tensor) -> None:
        dy, x, _, ctx.options = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx: ConvContext, v: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        dy, x = ctx.saved_tensors
        by_dy, by_x, *_ = ctx.needs_input_grad
        along = ConvForward.apply(x, v, ctx.options) if by_dy else None
        return along, ConvInputGradient.apply(dy, v, x, ctx.options) if by_x else None, None, None


def _convolution_backward(dy: Tensor, x: Tensor, w: Tensor, options: ConvOptions, wanted: int) -> Tensor:
    """`wanted`: 0 for dx, 1 for dw."""
    stride, padding, dilation, groups = options
    mask = [wanted == 0, wanted == 1, False]
    gradients: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward(
        dy, x, w, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return gradients[wanted]
