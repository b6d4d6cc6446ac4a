"""A function of tensors, traced with its derivatives and compiled by PyTorch's inductor; eager where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Generic

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metarun.engine.kernels.conv2d import IMAGE_DIMS
from metarun.engine.kernels.substitute import SubstituteKernels
from metarun.engine.trees import Args, TensorTree
from metarun.engine.unroll.rolled import recorded_loops
from metarun.torch_setup.lazy_compiler import load_compiler

MAX_COMPILED_SHAPES = 4  # of one function; each takes seconds to minutes, and shapes that vary would never end


class Compiled(Generic[*Args, TensorTree]):
    """`function`, compiled once for each set of shapes. `note` is told what could not be compiled.

    Its arguments are trees of tensors, which it neither keeps nor changes.
    """

    def __init__(self, function: Callable[[*Args], TensorTree], note: Callable[[str], None]) -> None:
        self.function, self.note = function, note
        self.by_shapes: dict[Hashable, Callable[[*Args], TensorTree] | None] = {}  # None: stays eager

    def __call__(self, *args: *Args) -> TensorTree:
        leaves, spec = tree_flatten(args)
        key = (str(spec), *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        if key not in self.by_shapes:
            self.by_shapes[key] = self._try_to_compile(args)
        return (self.by_shapes[key] or self.function)(*args)

    def _try_to_compile(self, args: tuple[*Args]) -> Callable[[*Args], TensorTree] | None:
        if len(self.by_shapes) >= MAX_COMPILED_SHAPES:
            if len(self.by_shapes) == MAX_COMPILED_SHAPES:
                self.note(f"compile: more than {MAX_COMPILED_SHAPES} different shapes; the others run without it")
            return None
        try:
            return compile_for(self.function, args)
        except Exception as error:  # whatever a tracer, a code generator or a C++ compiler may raise
            self.note(f"compile: {type(error).__name__}: {_first_nonempty_line(error)}; runs without it")
            return None


def compile_for(function: Callable[[*Args], TensorTree], args: tuple[*Args]) -> Callable[[*Args], TensorTree]:
    """`function` compiled for arguments of these shapes and strides; the compiled code does not check them."""
    from torch._guards import TracingContext, tracing  # slow to import, as are the others

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU
    load_compiler()
    from torch._inductor import compile as inductor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    leaves, spec = tree_flatten(args)
    result_specs: list[TreeSpec] = []

    def flat_function(*leaves: Tensor) -> list[Tensor]:
        with SubstituteKernels():
            own_args = tree_unflatten([_channels_last(leaf) for leaf in leaves], spec)
            values, result_spec = tree_flatten(function(*own_args))
        result_specs.append(result_spec)
        return [value.contiguous() for value in values]

    def compile_graph(
        graph: GraphModule, inputs: list[Tensor], cpp_wrapper: bool = True
    ) -> Callable[..., Sequence[Tensor]]:
        # There are no symbolic shapes; yet without a ShapeEnv inductor does not use its cache.
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            run: Callable[..., Sequence[Tensor]] = inductor(graph, [*inputs], {"cpp_wrapper": cpp_wrapper})
        return run

    with torch.no_grad():
        with recorded_loops() as loops:
            graph = make_fx(flat_function, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        run = compile_graph(graph, leaves, cpp_wrapper=not loops)
        for loop in loops:
            loop.compile(compile_graph)
        run(*leaves)  # errors of the compiled code are raised here

    def call(*args: *Args) -> TensorTree:
        with torch.no_grad():
            result: TensorTree = tree_unflatten(list(run(*tree_flatten(args)[0])), result_specs[0])
        return result

    return call


def _channels_last(value: Tensor) -> Tensor:
    """Converted once here, and not again by every convolution."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == IMAGE_DIMS else value


def _first_nonempty_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
