"""One step of an inner loop and its vector-Jacobian product, each traced into a graph of tensor operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from metarun.engine.kernels.conv2d import IMAGE_DIMS
from metarun.engine.kernels.substitute import SubstituteKernels

FlatStep = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], list[Tensor]]
"""(tensors of carry_k, tensors of consts, k) -> tensors of carry_k+1"""

GraphCompiler = Callable[[GraphModule, list[Tensor]], Callable[..., Sequence[Tensor]]]
"""(graph, example inputs) -> a function of tensors that computes the graph"""


class StepGraph:
    """A traced function of tensors. It is interpreted until `compile` is called."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self._run: Callable[..., Sequence[Tensor]] = graph
        self._inputs: list[Tensor] = [node.meta["val"] for node in _inputs(graph.graph)]
        self._outputs: list[Tensor] = [node.meta["val"] for node in _outputs(graph.graph)]

    def compile(self, compiler: GraphCompiler) -> None:
        self._run = compiler(self.graph, [_empty(like, like.device).zero_() for like in self._inputs])

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        inputs = [_with_strides(value, like) for value, like in zip(values, self._inputs, strict=True)]
        return [_with_strides(value, like) for value, like in zip(self._run(*inputs), self._outputs, strict=True)]

    def empty_outputs(self, device: torch.device) -> list[Tensor]:
        """Tensors of the shapes, strides and types of the outputs, without values."""
        return [_empty(like, device) for like in self._outputs]


class TracedStep(NamedTuple):
    forward: StepGraph  # (carry, consts, k) -> carry
    backward: StepGraph  # (carry, consts, k, cotangents of the carry after the step) -> cotangents
    places: list[int | None]  # of each tensor of (carry, consts): which output of `backward` is its cotangent


def float_indices(values: Sequence[Tensor]) -> list[int]:
    """Only floating-point tensors have a derivative."""
    return [i for i, value in enumerate(values) if value.is_floating_point()]


def trace_step(step: FlatStep, carry_size: int, tensors: Sequence[Tensor]) -> TracedStep:
    """Traces one step into a forward and a backward graph, and says which input each cotangent belongs to.

    `tensors` are examples: the `carry_size` tensors of a carry, then the consts. All float tensors of a carry get a
    cotangent, of the consts those that the step depends on.
    """
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

    places: list[int | None] = []

    def forward_and_backward(values: list[Tensor], k: Tensor, cotangents: list[Tensor]) -> list[Tensor]:
        leaves = [value.detach().requires_grad_(value.is_floating_point()) for value in values]
        with torch.enable_grad(), SubstituteKernels():
            carry, consts = leaves[:carry_size], leaves[carry_size:]
            after = [_memory_format_of(a, b) for a, b in zip(carry, step(carry, consts, k), strict=True)]
            gradients = _gradients(after, leaves, cotangents)
        by_input, places[:] = _present(leaves, gradients, carry_size)
        return [*(value.detach() for value in after), *by_input]

    examples = [_contiguous_if_expanded(value.detach()) for value in tensors]
    with disable_proxy_modes_tracing(), torch.no_grad():
        k = torch.zeros((), dtype=torch.int64, device=examples[0].device)
        cotangents = [torch.zeros_like(examples[i]) for i in float_indices(examples[:carry_size])]
        graph = make_fx(forward_and_backward, tracing_mode="fake")(examples, k, cotangents)
    _refuse_closure(graph)
    forward = _subgraph(graph, slice(0, carry_size), unused_inputs=len(cotangents))
    return TracedStep(StepGraph(forward), StepGraph(_subgraph(graph, slice(carry_size, None))), places)


def _refuse_closure(graph: GraphModule) -> None:
    """A tensor in a closure is another one at the next call. In the trace it is a FakeTensor, without values."""
    from torch._subclasses.fake_tensor import FakeTensor

    if any(isinstance(value, FakeTensor) for value in (*graph.buffers(), *graph.parameters())):
        raise ValueError("an inner step closes over a tensor")


def _empty(like: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)


def _with_strides(value: Tensor, like: Tensor) -> Tensor:
    """Compiled code assumes the strides it was compiled for and does not check them."""
    return value if value.stride() == like.stride() else _empty(like, value.device).copy_(value)


def _contiguous_if_expanded(value: Tensor) -> Tensor:
    return value if 0 not in value.stride() else value.contiguous()


def _memory_format_of(before: Tensor, value: Tensor) -> Tensor:
    """The carry after a step has the memory format of the carry before it, so that one graph serves all steps."""
    last = before.dim() == IMAGE_DIMS and before.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _gradients(after: list[Tensor], leaves: list[Tensor], cotangents: list[Tensor]) -> list[Tensor | None]:
    """By each float tensor of `leaves`; None where nothing depends on it."""
    ends = [(after[i], v) for i, v in zip(float_indices(after), cotangents, strict=True) if after[i].requires_grad]
    sources = [leaves[i] for i in float_indices(leaves)]
    if not ends:
        return [None] * len(sources)
    outputs, given = zip(*ends, strict=True)
    return list(torch.autograd.grad(outputs, sources, given, allow_unused=True))


def _present(
    leaves: list[Tensor], gradients: Sequence[Tensor | None], carry_size: int
) -> tuple[list[Tensor], list[int | None]]:
    """The gradients that there are (zeros for a carry that nothing depends on), and each leaf's place among them."""
    present: list[Tensor] = []
    places: list[int | None] = [None] * len(leaves)
    for i, value in zip(float_indices(leaves), gradients, strict=True):
        if value is not None or i < carry_size:
            places[i] = len(present)
            present.append(torch.zeros_like(leaves[i]) if value is None else value)
    return present, places


def _subgraph(graph: GraphModule, outputs: slice, unused_inputs: int = 0) -> GraphModule:
    """Computes only these outputs, without the last inputs; takes and returns tensors one by one and not in lists."""
    part = GraphModule(graph, copy.deepcopy(graph.graph))
    part.graph.set_codegen(CodeGen())
    part.graph.output_node().args = (_outputs(part.graph)[outputs],)
    part.graph.eliminate_dead_code()
    inputs = _inputs(part.graph)
    for node in inputs[len(inputs) - unused_inputs :]:
        part.graph.erase_node(node)
    part.recompile()
    return part


def _inputs(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _outputs(graph: Graph) -> list[Node]:
    (values,) = graph.output_node().args
    assert isinstance(values, Sequence), f"a graph that returns {values}"
    nodes = [node for node in values if isinstance(node, Node)]
    assert len(nodes) == len(values), f"a graph that returns {values}"
    return nodes
