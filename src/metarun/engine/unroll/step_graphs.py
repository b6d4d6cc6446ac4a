"""A step of an inner loop and its derivative, each traced as a function of tensors alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metarun.engine.kernels.conv2d import DIMS
from metarun.engine.kernels.substitute import Closed

Step = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], list[Tensor]]
Compiler = Callable[[Any, list[Tensor]], Callable[..., Any]]


class Half:
    """Interpreted until it is compiled."""

    def __init__(self, graph: Any) -> None:
        self.graph, self._run = graph, graph
        *nodes, last = graph.graph.nodes
        self._inputs = [node.meta["val"] for node in nodes if node.op == "placeholder"]
        self._outputs = [node.meta["val"] for node in last.args[0]]

    def compile(self, compiler: Compiler) -> None:
        self._run = compiler(self.graph, [_empty(like, like.device).zero_() for like in self._inputs])

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        laid = [_laid(value, like) for value, like in zip(values, self._inputs, strict=True)]
        return [_laid(value, like) for value, like in zip(self._run(*laid), self._outputs, strict=True)]

    def empty(self, device: torch.device) -> list[Tensor]:
        """What it gives, but for the numbers."""
        return [_empty(like, device) for like in self._outputs]


def _empty(like: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)


def _laid(value: Tensor, like: Tensor) -> Tensor:
    """In the order in memory that the code was made for, which does not look."""
    return value if value.stride() == like.stride() else _empty(like, value.device).copy_(value)


def moving(values: Sequence[Tensor]) -> list[int]:
    """What has a derivative."""
    return [i for i, value in enumerate(values) if value.is_floating_point()]


def halved(step: Step, size: int, tensors: Sequence[Tensor]) -> tuple[Half, Half, list[int | None]]:
    """Of examples of a carry of `size` tensors and of consts: the step; the cotangents of the carry's floats, and of
    those consts that have any; and where among these each example's is.
    """
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

    places: list[int | None] = []

    def both(values: list[Tensor], number: Tensor, cotangents: list[Tensor]) -> list[Tensor]:
        leaves = [value.detach().requires_grad_(value.is_floating_point()) for value in values]
        with torch.enable_grad(), Closed():
            found = step(leaves[:size], leaves[size:], number)
            after = [_ordered(value, before) for value, before in zip(found, leaves[:size], strict=True)]
            pulled = _pulled(after, leaves, cotangents)
        wanted, places[:] = _arranged(leaves, pulled, size)
        return [*(value.detach() for value in after), *wanted]

    examples = [_dense(value.detach()) for value in tensors]
    with disable_proxy_modes_tracing(), torch.no_grad():
        number = torch.zeros((), dtype=torch.int64, device=examples[0].device)
        cotangents = [torch.zeros_like(examples[i]) for i in moving(examples[:size])]
        graph = make_fx(both, tracing_mode="fake")(examples, number, cotangents)
    _check_closed(graph)
    ahead = _part(graph, slice(0, size), drop=len(cotangents))
    return Half(ahead), Half(_part(graph, slice(size, None))), places


def _check_closed(graph: Any) -> None:
    """A tensor that a step closes over is another at the next call; when it was traced, it had no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    constants = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    if any(isinstance(value, FakeTensor) for value in constants):
        raise ValueError("an inner step closes over a tensor")


def _dense(value: Tensor) -> Tensor:
    """As itself, but an expanded one as it is when written out."""
    return value if 0 not in value.stride() else value.contiguous()


def _ordered(value: Tensor, before: Tensor) -> Tensor:
    """The next step's carry lies in memory as this one's."""
    last = before.dim() == DIMS and before.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _pulled(after: list[Tensor], leaves: list[Tensor], cotangents: list[Tensor]) -> list[Tensor | None]:
    ends = [(after[i], v) for i, v in zip(moving(after), cotangents, strict=True) if after[i].requires_grad]
    sources = [leaves[i] for i in moving(leaves)]
    if not ends:
        return [None] * len(sources)
    outputs, given = zip(*ends, strict=True)
    return list(torch.autograd.grad(outputs, sources, given, allow_unused=True))


def _arranged(
    leaves: list[Tensor], pulled: Sequence[Tensor | None], size: int
) -> tuple[list[Tensor], list[int | None]]:
    wanted: list[Tensor] = []
    places: list[int | None] = [None] * len(leaves)
    for i, value in zip(moving(leaves), pulled, strict=True):
        if value is not None or i < size:
            places[i] = len(wanted)
            wanted.append(torch.zeros_like(leaves[i]) if value is None else value)
    return wanted, places


def _part(graph: Any, values: slice, drop: int = 0) -> Any:
    """What leads to some of its values, without its last arguments; one by one and not in lists."""
    part = torch.fx.GraphModule(graph, copy.deepcopy(graph.graph))
    part.graph.set_codegen(torch.fx.graph.CodeGen())
    last = list(part.graph.nodes)[-1]
    last.args = (list(last.args[0])[values],)
    part.graph.eliminate_dead_code()
    arguments = [node for node in part.graph.nodes if node.op == "placeholder"]
    for node in arguments[len(arguments) - drop :]:
        part.graph.erase_node(node)
    part.recompile()
    return part
