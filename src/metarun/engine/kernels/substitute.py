"""Replaces torch functions by ours, whose derivatives are again such operations, so that inductor fuses second order.

torch's own functions give inductor, at second order, convolutions with kernels as large as the image, max-pooling
indices that it cannot fuse, and sums that are known to be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from metarun.engine.kernels.conv2d import conv2d
from metarun.engine.kernels.max_pool2d import max_pool2d
from metarun.engine.kernels.var_mean import var_mean

SUBSTITUTES: Mapping[object, Callable[..., object]] = {
    torch.conv2d: conv2d,
    functional.max_pool2d: max_pool2d,
    torch.var_mean: var_mean,
}
"""torch's function -> ours, with the same arguments. Ours returns None for arguments it does not support."""


class SubstituteKernels(TorchFunctionMode):
    """Context manager: the torch functions in SUBSTITUTES are replaced by ours inside it."""

    def __torch_function__(
        self,
        function: Callable[..., object],
        _types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        substitute = SUBSTITUTES.get(function)
        result = substitute(*args, **named) if substitute else None
        return function(*args, **named) if result is None else result
