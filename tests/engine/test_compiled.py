"""What is compiled computes the same as what is not, once for all steps and chunks; what cannot be compiled goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import grad, jacrev, vmap
from torch.nn.functional import conv2d, max_pool2d
from torch.utils._pytree import tree_leaves

from metarun.algos.protonet import ProtoNet
from metarun.engine.compile import inductor as compiled
from metarun.engine.compile.inductor import Compiled
from metarun.engine.kernels.substitute import SubstituteKernels
from metarun.engine.unroll import UnrollMemory
from metarun.engine.unroll.rolled import MAX_UNROLLED_STEPS
from metarun.engine.vmap import Vmap
from support.contract import prepared
from support.small import SEED, distance, episodes, grown, maml, metasgd, network

EXACT = 1e-10
CASES: dict[str, Any] = {
    "maml": ("conv4-pooled", maml("batch", steps=1, test_steps=1)),
    "maml-mlp": ("mlp-sine", maml("batch", test_steps=1)),
}
SLOW: dict[str, Any] = {
    "maml-mlp-steps": ("mlp-sine", maml("batch", steps=3, test_steps=2)),
    "maml-steps": ("conv4-strided", maml("running", steps=3, test_steps=2)),
    "fomaml": ("conv4-strided", maml("batch", derivatives="first")),
    "anil": ("conv4-pooled", maml("running", adapt=("head.*",))),
    "metasgd": ("conv4-strided", metasgd("batch")),
    "protonet": ("conv4-pooled", ProtoNet("euclidean", "running")),
    "protonet-mlp": ("mlp-batch", ProtoNet("euclidean", "batch")),
    "late": ("mlp-batch", maml("batch", second_order_from=2)),
}


def same(
    net: Any, algo: Any, meta: Any, episode: Any, chunk: int, tested: bool, memory: UnrollMemory = "graph"
) -> None:
    fast, plain = Vmap(chunk, memory, "on").build(algo, net), Vmap(chunk, "graph", "off").build(algo, net)
    for step in (0, 5):
        (found, found_aux), (expected, aux) = (engine.meta_grad(meta, episode, step) for engine in (fast, plain))
        assert distance(found, expected) < EXACT
        assert distance(found_aux.metrics, aux.metrics) < EXACT
        assert distance(found_aux.buffers, aux.buffers) < EXACT
    if tested:
        assert distance(fast.scores(meta, episode), plain.scores(meta, episode)) < EXACT
    assert fast.notes == []


@pytest.mark.parametrize("case", CASES)
def test_compiled_is_eager(case: str) -> None:
    name, algo = CASES[case]
    net, weights = network(name)
    same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), 2, tested=case == "maml-mlp")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("case", SLOW)
def test_compiled_is_eager_for_others(case: str, chunk: int) -> None:
    name, algo = SLOW[case]
    net, weights = network(name)
    same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), chunk, tested=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cavia", "mamlpp", "reptile"])
def test_compiled_presets(name: str) -> None:
    algo, net, meta, episode = prepared(name, "classes")
    same(net, algo, grown(meta), episode, 2, tested=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("case", ["maml-mlp-steps", "maml-steps"])
def test_a_rolled_loop_is_an_unrolled_one_compiled(case: str, chunk: int) -> None:
    name, algo = SLOW[case]
    net, weights = network(name)
    same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), chunk, tested=False, memory="adjoint")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what was traced, which is interpreted instead of compiled."""
    import torch._inductor

    sizes: list[int] = []

    def interpreted(graph: Any, _inputs: Any, _options: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch._inductor, "compile", interpreted)
    return sizes


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("case", [*CASES, *SLOW])
def test_a_rolled_loop_is_an_unrolled_one(case: str, chunk: int, traced: list[int]) -> None:
    name, algo = {**CASES, **SLOW}[case]
    net, weights = network(name)
    same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), chunk, tested=False, memory="adjoint")
    assert len(traced) == (3 if getattr(algo, "steps", 0) > 1 else 1)


# Graphs: what is around the loop, a step, and its derivative where there is one.
ROLLED = {"cavia": 3, "imaml": 2, "kfo": 3, "l2o": 3, "lstm": 3, "mamlpp": 3, "reptile": 2}


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("name", ROLLED)
def test_presets_rolled(name: str, chunk: int, traced: list[int]) -> None:
    algo, net, meta, episode = prepared(name, "classes")
    same(net, algo, grown(meta), episode, chunk, tested=False, memory="adjoint")
    assert len(traced) == ROLLED[name]


@pytest.mark.parametrize("chunk", [1, 2])
def test_code_does_not_grow_with_the_steps(chunk: int, traced: list[int]) -> None:
    net, weights = network("mlp-sine")
    for steps in (MAX_UNROLLED_STEPS + 1, 4 * MAX_UNROLLED_STEPS):
        algo = maml("batch", steps=steps, inner_lr=0.01)
        same(net, algo, grown(algo.init(net, weights, SEED)), episodes("mlp-sine"), chunk, tested=False)
    assert traced[:3] == traced[3:]
    assert len(traced) == 6


def test_one_artefact_serves_every_step_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a last chunk that is smaller goes without."""
    made: list[int] = []

    def counted(function: Any, args: Any) -> Any:
        made.append(len(args[1].index))
        return function

    monkeypatch.setattr(compiled, "compile_for", counted)
    net, weights = network("mlp")
    algo = maml("batch")
    engine = Vmap(2, "graph", "on").build(algo, net)
    meta = algo.init(net, weights, SEED)
    for step in range(3):
        engine.meta_grad(meta, episodes("mlp", tasks=5), step)
    assert made == [2]


def test_tracing_computes_nothing(traced: list[int]) -> None:
    """It would take the memory of a step that is not compiled."""
    met: list[bool] = []

    def watched(x: Tensor) -> Tensor:
        met.append(isinstance(x, FakeTensor))
        return x * 2

    notes: list[str] = []
    wrapped: Compiled[Tensor, Tensor] = Compiled(watched, notes.append)
    assert torch.equal(wrapped(torch.ones(3)), torch.full((3,), 2.0))
    assert met == [True]
    assert len(traced) == 1
    assert notes == []


def test_a_failure_is_one_line_and_the_run_goes_on() -> None:
    notes: list[str] = []

    def peeks(x: Tensor) -> Tensor:
        return x * (2 if bool(x.sum() > 0) else 3)

    def broken(_function: Any, _args: Any) -> Any:
        raise RuntimeError("\nno compiler\nat all")

    wrapped: Compiled[Tensor, Tensor] = Compiled(peeks, notes.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compile_for", broken)
        for _ in range(2):
            assert torch.equal(wrapped(torch.ones(2)), torch.full((2,), 2.0))
    assert notes == ["compile: RuntimeError: no compiler; runs without it"]


def test_shapes_without_end_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def counted(function: Any, args: Any) -> Any:
        made.append(args)
        return function

    monkeypatch.setattr(compiled, "compile_for", counted)
    notes: list[str] = []
    wrapped: Compiled[Tensor, Tensor] = Compiled(torch.sin, notes.append)
    for size in (*range(1, 9), 1, 8):
        assert wrapped(torch.ones(size)).shape == (size,)
    assert len(made) == compiled.MAX_COMPILED_SHAPES
    assert len(notes) == 1


def second_order(function: Any, *args: Tensor) -> list[Tensor]:
    """Values, first and second derivatives of functions of several tensors, for a stack of tasks."""
    places = tuple(range(len(args)))

    def value(*args: Tensor) -> Tensor:
        total: Tensor = function(*args).sin().sum()
        return total

    def pulled(*args: Tensor) -> Tensor:
        return torch.stack([(d.square() * d).sum() for d in grad(value, argnums=places)(*args)]).sum()

    def all_of(*args: Tensor) -> Any:
        return value(*args), jacrev(value, argnums=places)(*args), grad(pulled, argnums=places)(*args)

    def alone(*args: Tensor) -> Any:
        return all_of(*(arg[0] for arg in args))

    found = [*tree_leaves(vmap(all_of)(*args)), *tree_leaves(alone(*args))]
    assert all(isinstance(value, Tensor) for value in found)
    return found


def same_closed(function: Any, *args: Tensor) -> None:
    expected = second_order(function, *args)
    with SubstituteKernels():
        found = second_order(function, *args)
    for a, e in zip(found, expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-11, atol=1e-11)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


@pytest.mark.parametrize(
    "sizes", [{}, {"stride": 2, "padding": 1}, {"padding": (1, 0), "dilation": (1, 2), "stride": (1, 2)}, {"groups": 2}]
)
@pytest.mark.parametrize("channels", [4, 2])  # a group's are one, then
@pytest.mark.parametrize("images", [1, 3])  # few pixels, and more
def test_convolutions_closed_under_differentiation(sizes: dict[str, Any], channels: int, images: int) -> None:
    """Value, gradient and second derivatives are torch's."""
    inner = channels // 2
    x, w, b = drawn(2, images, channels, 7, 6), drawn(2, 4, inner, 3, 3), drawn(2, 4)
    if "groups" not in sizes:
        x = x[:, :, :inner]  # one channel in all, or two
    same_closed(lambda x, w, b: conv2d(x, w, b, **sizes), x, w, b)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_max_pooling_closed_under_differentiation(size: tuple[int, int]) -> None:
    same_closed(lambda x: max_pool2d(x, 2), drawn(2, 3, 2, *size))


def test_of_equal_values_the_first_is_pooled() -> None:
    """Like torch's own: real pictures have patches of one colour."""
    x = torch.tensor([[1.0, 1, 0, 2], [1, 1, 2, 2], [0, 3, 5, 4], [3, 3, 5, 5]], dtype=torch.float64)
    same_closed(lambda x, w: max_pool2d(x * w, 2), x.expand(2, 1, 1, 4, 4), drawn(2, 1, 1, 4, 4).sign())


@pytest.mark.parametrize("options", [{"stride": 1}, {"padding": 1}, {"ceil_mode": True}])
def test_other_pooling_is_torchs(options: dict[str, Any]) -> None:
    same_closed(lambda x: max_pool2d(x, 2, **options), drawn(2, 3, 2, 5, 5))


@pytest.mark.parametrize("dims", [[0], [0, 2, 3], [1, 2]])
def test_moments_closed_under_differentiation(dims: list[int]) -> None:
    same_closed(lambda x: torch.cat([v.flatten() for v in torch.var_mean(x, dims, correction=0)]), drawn(2, 3, 2, 4, 5))
    same_closed(lambda x: torch.cat([v.flatten() for v in torch.var_mean(x, dims)]), drawn(2, 3, 2, 4, 5))
