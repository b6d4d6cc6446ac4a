"""A function of tensors captured as a CUDA graph, which launches its kernels all at once: for steps of small ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Result = TypeVar("Result")
WARM_UP = 3  # runs before the capture, in which libraries choose their kernels and take their memory
MOST_SHAPES = 8  # graphs; each keeps the memory of one run


class Captured(Generic[Result]):
    """`function` of trees of tensors, without a look at their values. Captured anew for each set of shapes.

    `in_place`: it changes tensors of its own, so it runs as often as it is called: first launched, then captured.
    """

    def __init__(self, function: Callable[..., Result], in_place: bool = False) -> None:
        self.function, self.in_place = function, in_place
        self.made: dict[Hashable, Callable[..., Result] | None] = {}  # None: launched once

    def __call__(self, *args: Any) -> Result:
        leaves, spec = tree_flatten(args)
        if not capturable(leaves):
            return self.function(*args)
        key = (str(spec), *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        if key in self.made and self.made[key] is None:
            self.made[key] = captured(self.function, args, warm_up=0)
        elif key not in self.made and len(self.made) < MOST_SHAPES:
            self.made[key] = None if self.in_place else captured(self.function, args, WARM_UP)
        return (self.made.get(key) or self.function)(*args)


def capturable(values: list[Tensor]) -> bool:
    return all(value.is_cuda for value in values)


def captured(function: Callable[..., Result], args: tuple[Any, ...], warm_up: int) -> Callable[..., Result]:
    """`function` replayed on tensors of its own: what comes in is copied there, what goes out is copied from there."""
    leaves, spec = tree_flatten(args)
    inputs = [leaf.detach().clone() for leaf in leaves]
    given = tree_unflatten(inputs, spec)
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(warm_up):
            function(*given)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*given)

    def replay(*args: Any) -> Result:
        for place, value in zip(inputs, tree_flatten(args)[0], strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        copied: Result = tree_map(Tensor.clone, result)  # the next replay writes over it
        return copied

    return replay
