"""Biased variance and mean in two passes, with the shortest derivative; inductor fuses both.

The derivative leaves out the sum of (x - mean), which is zero and which torch's own derivative computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from metarun.engine.autograd_context import AutogradContext


def var_mean(x: Tensor, dim: object = None, **options: object) -> tuple[Tensor, Tensor] | None:
    """torch.var_mean(x, dim, correction=0) over a list of dimensions."""
    if not isinstance(dim, Sequence) or options != {"correction": 0}:
        return None
    found: tuple[Tensor, Tensor] = VarMean.apply(x, list(dim))
    return found


class VarMeanContext(AutogradContext, Protocol):
    dims: list[int]


class VarMean(torch.autograd.Function):
    """x -> its biased variance and its mean"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims, keepdim=True)
        return (x - mean).square().mean(dims), mean.squeeze(dims)

    @staticmethod
    def setup_context(ctx: VarMeanContext, inputs: tuple[Tensor, list[int]], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.dims = inputs
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: VarMeanContext, dvar: Tensor, dmean: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        shape = [1 if dim in ctx.dims else size for dim, size in enumerate(x.shape)]
        share = mean.numel() / x.numel()
        return (x - mean.reshape(shape)) * (2 * share * dvar).reshape(shape) + (share * dmean).reshape(shape), None
