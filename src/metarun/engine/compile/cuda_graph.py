"""A function of tensors captured as a CUDA graph: all its kernels start with one launch, which pays for small ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Generic

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from metarun.engine.trees import Args, TensorTree

WARM_UP = 3  # runs before the capture, in which libraries choose their kernels and take their memory
MAX_CAPTURED_SHAPES = 8  # graphs of one function; each keeps the memory of one run


class Captured(Generic[*Args, TensorTree]):
    """`function`, captured once for each set of shapes and replayed from then on; on a CPU it is just called.

    Its arguments are trees of tensors, and it does not read their values. With `in_place` it changes tensors of its
    own, so it must run exactly as often as it is called: the first call launches it, the second one captures it.
    """

    def __init__(self, function: Callable[[*Args], TensorTree], in_place: bool = False) -> None:
        self.function, self.in_place = function, in_place
        self.graphs: dict[Hashable, Callable[[*Args], TensorTree] | None] = {}  # None: launched once
        if in_place:  # torch warns that an optimizer with capturable=True is launched, as our first call does
            warnings.filterwarnings("ignore", message=".*capturable=True.*")

    def __call__(self, *args: *Args) -> TensorTree:
        leaves, spec = tree_flatten(args)
        if not capturable(leaves):
            return self.function(*args)
        key = (str(spec), *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        if key in self.graphs and self.graphs[key] is None:
            self.graphs[key] = capture(self.function, args, warm_up=0)
        elif key not in self.graphs and len(self.graphs) < MAX_CAPTURED_SHAPES:
            self.graphs[key] = None if self.in_place else capture(self.function, args, WARM_UP)
        return (self.graphs.get(key) or self.function)(*args)


def capturable(values: Sequence[Tensor]) -> bool:
    return all(value.is_cuda for value in values)


def capture(function: Callable[[*Args], TensorTree], args: tuple[*Args], warm_up: int) -> Callable[[*Args], TensorTree]:
    """`function` as a graph over tensors of its own: arguments are copied there, and results are copied from there."""
    leaves, spec = tree_flatten(args)
    inputs = [leaf.detach().clone() for leaf in leaves]
    own_args = tree_unflatten(inputs, spec)
    side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(warm_up):
            function(*own_args)
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*own_args)

    def replay(*args: *Args) -> TensorTree:
        for place, value in zip(inputs, tree_flatten(args)[0], strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        copied: TensorTree = tree_map_only(Tensor, Tensor.clone, result)  # the next replay overwrites `result`
        return copied

    return replay
