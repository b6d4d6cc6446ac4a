"""Operations as a code generator likes them: whatever their derivative is made of, they are made of themselves.

torch's own leave it, at second order, convolutions with kernels as large as the image, indices it cannot see through
and sums that are known to be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from metarun.engine.kernels import conv2d as convolution
from metarun.engine.kernels import max_pool2d as pooling
from metarun.engine.kernels import var_mean as moments


class Closed(TorchFunctionMode):
    """While it lasts, torch's functions are these where they can be."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        ours = OURS.get(function)
        found = ours(*args, **named) if ours else NotImplemented
        return function(*args, **named) if found is NotImplemented else found


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if isinstance(padding, str) or x.dim() != convolution.DIMS:
        return NotImplemented
    out = convolution.conv2d(x, w, convolution.sizes(stride, padding, dilation, groups))
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def max_pool2d(x: Tensor, kernel_size: Any, stride: Any = None, *others: Any, **more: Any) -> Any:
    plain = stride is None and not others and more == {**more, **NO_EXTRAS}
    return pooling.max_pool2d(x) if plain and kernel_size == pooling.SIZE else NotImplemented


def var_mean(x: Tensor, dim: Any = None, **more: Any) -> Any:
    return moments.var_mean(x, list(dim)) if isinstance(dim, Sequence) and more == {"correction": 0} else NotImplemented


NO_EXTRAS = {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
OURS: dict[Any, Callable[..., Any]] = {
    torch.conv2d: conv2d,
    functional.max_pool2d: max_pool2d,
    torch.var_mean: var_mean,
}
