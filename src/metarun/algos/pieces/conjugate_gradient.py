"""The conjugate gradient method (Hestenes and Stiefel 1952) on dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.types import Params, StepIndex, Unroll


class CGCarry(NamedTuple):
    solution: Params
    residual: Params
    direction: Params


def conjugate_gradient(matvec: Callable[[Params], Params], b: Params, num_steps: int, unroll: Unroll) -> Params:
    """x of matvec(x) = b, where matvec is linear, symmetric and positive definite.

    Starts from 0 and is exact after as many steps as x has numbers. Steps after convergence leave x as it is: their
    length 0 / 0 counts as 0.
    """

    def step(carry: CGCarry, _consts: tuple[()], _k: StepIndex) -> CGCarry:
        x, r, p = carry
        product, squared = matvec(p), inner_product(r, r)
        length = quotient_or_zero(squared, inner_product(p, product))
        x, r = add_scaled(x, length, p), add_scaled(r, -length, product)
        return CGCarry(x, r, add_scaled(r, quotient_or_zero(inner_product(r, r), squared), p))

    zero = {name: torch.zeros_like(value) for name, value in b.items()}
    return unroll(step, CGCarry(zero, b, b), (), num_steps).solution


def inner_product(a: Params, b: Params) -> Tensor:
    return torch.stack([(value * b[name]).sum() for name, value in a.items()]).sum()


def add_scaled(a: Params, factor: Tensor, b: Params) -> Params:
    return {name: value + factor * b[name] for name, value in a.items()}


def quotient_or_zero(above: Tensor, below: Tensor) -> Tensor:
    is_zero = below == 0
    return torch.where(is_zero, 0, above / torch.where(is_zero, 1, below))
