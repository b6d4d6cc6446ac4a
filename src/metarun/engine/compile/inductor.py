"""A function of tensors traced whole, its derivatives included, and given to inductor; eager where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.engine.kernels.conv2d import DIMS
from metarun.engine.kernels.substitute import Closed
from metarun.engine.unroll.rolled import recorded
from metarun.torch_setup.lazy_compiler import load_compiler

Result = TypeVar("Result")
MOST_SHAPES = 4  # compiled for one function; each costs seconds to minutes, and shapes that vary never end


class Compiled(Generic[Result]):
    """`function` of trees of tensors, which it may neither keep nor change. Compiled anew for each set of shapes."""

    def __init__(self, function: Callable[..., Result], note: Callable[[str], None]) -> None:
        self.function, self.note = function, note
        self.made: dict[Hashable, Callable[..., Result] | None] = {}

    def __call__(self, *args: Any) -> Result:
        leaves, spec = tree_flatten(args)
        key = (str(spec), *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        if key not in self.made:
            self.made[key] = self._make(args)
        return (self.made[key] or self.function)(*args)

    def _make(self, args: tuple[Any, ...]) -> Callable[..., Result] | None:
        if len(self.made) >= MOST_SHAPES:
            if len(self.made) == MOST_SHAPES:
                self.note(f"compile: more than {MOST_SHAPES} different shapes; the others go without")
            return None
        try:
            return compiled(self.function, args)
        except Exception as error:  # whatever a tracer, a code generator or a C++ compiler may throw
            self.note(f"compile: {type(error).__name__}: {_line(error)}; goes on without")
            return None


def compiled(function: Callable[..., Result], args: tuple[Any, ...]) -> Callable[..., Result]:
    """`function` for args of these shapes. It never looks at shapes again."""
    from torch._guards import TracingContext, tracing  # slow to import, as are the others

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU
    load_compiler()
    from torch._inductor import compile as inductor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    leaves, spec = tree_flatten(args)
    shape_of_result: list[Any] = []

    def flat(*leaves: Tensor) -> list[Tensor]:
        with Closed():
            values, result_spec = tree_flatten(
                function(*tree_unflatten([_channels_last(leaf) for leaf in leaves], spec))
            )
        shape_of_result.append(result_spec)
        return [value.contiguous() for value in values]

    def generated(graph: Any, inputs: list[Tensor], native: bool = True) -> Callable[..., Any]:
        # Without symbols for shapes, of which there are none, inductor would pass its cache by.
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            run: Callable[..., Any] = inductor(graph, [*inputs], {"cpp_wrapper": native})
        return run

    with torch.no_grad():
        with recorded() as loops:
            graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        run = generated(graph, leaves, native=not loops)
        for loop in loops:
            loop.compile(generated)
        run(*leaves)  # what is wrong with it shows here

    def call(*args: Any) -> Result:
        with torch.no_grad():
            result: Result = tree_unflatten(list(run(*tree_flatten(args)[0])), shape_of_result[0])
        return result

    return call


def _channels_last(value: Tensor) -> Tensor:
    """Once, and not by every convolution anew."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == DIMS else value


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
