"""Weights as dictionaries: a part of them chosen by name, detached from the graph, moved by a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from metarun.types import Params


def names_matching(weights: Mapping[str, Tensor], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in weights if any(fnmatchcase(name, pattern) for pattern in patterns)]


def select_weights(weights: Mapping[str, Tensor], adapt: tuple[str, ...]) -> Params:
    """The weights that `adapt`, a field of many algorithms, names by patterns."""
    names = names_matching(weights, adapt)
    if not names:
        raise ValueError(f"adapt={list(adapt)}: matches no parameter; their names begin with body. and head.")
    return {name: weights[name] for name in names}


def body_weights(weights: Params) -> Params:
    return {name: value for name, value in weights.items() if name.startswith("body.")}


def detached(weights: Params) -> Params:
    return {name: value.detach() for name, value in weights.items()}


def gradient_step(lr: float, weights: Params, gradient: Params) -> Params:
    """Plain gradient descent: w - lr * gradient."""
    return {name: value - lr * gradient[name] for name, value in weights.items()}
