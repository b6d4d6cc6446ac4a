"""Convolutions whose every derivative is a convolution again, or its gradient by input or by weight.

torch's own second derivative by the weight is a forward convolution with a kernel as large as the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class Sizes(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class ClosedConvolutions(TorchFunctionMode):
    """While it lasts, torch.conv2d is of this family."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if function is torch.conv2d and not isinstance(named.get("padding", (*args, 0, 0, 0, 0, 0)[4]), str):
            return conv2d(*args, **named)
        return function(*args, **named)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    out: Tensor = Forward.apply(input, weight, Sizes(_pair(stride), _pair(padding), _pair(dilation), groups))
    return out if bias is None else out + bias.reshape(-1, 1, 1)


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
