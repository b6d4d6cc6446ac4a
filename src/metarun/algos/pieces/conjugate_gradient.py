"""Conjugate gradients (Hestenes and Stiefel 1952) on dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.types import Params, Unroll


class Search(NamedTuple):
    solution: Params
    residual: Params
    direction: Params


def solved(system: Callable[[Params], Params], b: Params, num_steps: int, unroll: Unroll) -> Params:
    """x of system(x) = b, `system` symmetric: from 0, exact after as many steps as x has numbers.

    What is solved before the last step stays as it is: a step of 0 / 0 is none.
    """

    def step(carry: Search, _consts: Any, _k: Any) -> Search:
        x, r, p = carry
        product, squared = system(p), dot(r, r)
        length = ratio(squared, dot(p, product))
        x, r = plus(x, length, p), plus(r, -length, product)
        return Search(x, r, plus(r, ratio(dot(r, r), squared), p))

    nothing = {name: torch.zeros_like(value) for name, value in b.items()}
    end: Search = unroll(step, Search(nothing, b, b), (), num_steps)
    return end.solution


def dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(value * b[name]).sum() for name, value in a.items()]).sum()


def plus(a: Params, factor: Tensor, b: Params) -> Params:
    return {name: value + factor * b[name] for name, value in a.items()}


def ratio(above: Tensor, below: Tensor) -> Tensor:
    none = below == 0
    return torch.where(none, 0, above / torch.where(none, 1, below))
