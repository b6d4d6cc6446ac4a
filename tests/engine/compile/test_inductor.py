"""Compiled engines equal eager ones, compile once for all steps and chunks, and run eagerly where that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from metarun.algos.protonet import ProtoNet
from metarun.engine.compile import inductor
from metarun.engine.compile.inductor import Compiled
from metarun.engine.unroll import UnrollMemory, unroll_for
from metarun.engine.unroll.rolled import MAX_UNROLLED_STEPS
from metarun.types import StepIndex
from support.contract import prepared
from support.engines import vmap_engine
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


def assert_same(
    net: Any, algo: Any, meta: Any, episode: Any, chunk: int, tested: bool, memory: UnrollMemory = "graph"
) -> None:
    fast, plain = vmap_engine(chunk, memory, "on").build(algo, net), vmap_engine(chunk, "graph", "off").build(algo, net)
    for step in (0, 5):
        (found, found_aux), (expected, aux) = (engine.meta_grad(meta, episode, step) for engine in (fast, plain))
        assert distance(found, expected) < EXACT
        assert distance(found_aux.metrics, aux.metrics) < EXACT
        assert distance(found_aux.buffers, aux.buffers) < EXACT
    if tested:
        assert distance(fast.scores(meta, episode), plain.scores(meta, episode)) < EXACT
    assert fast.notes == []


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case == "maml" else case for case in CASES]
)
def test_compiled_is_eager(case: str) -> None:
    name, algo = CASES[case]
    net, weights = network(name)
    assert_same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), 2, tested=case == "maml-mlp")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("case", SLOW)
def test_compiled_is_eager_for_others(case: str, chunk: int) -> None:
    name, algo = SLOW[case]
    net, weights = network(name)
    assert_same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), chunk, tested=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cavia", "mamlpp", "reptile"])
def test_compiled_presets(name: str) -> None:
    algo, net, meta, episode = prepared(name, "classes")
    assert_same(net, algo, grown(meta), episode, 2, tested=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("case", ["maml-mlp-steps", "maml-steps"])
def test_a_rolled_loop_is_an_unrolled_one_compiled(case: str, chunk: int) -> None:
    name, algo = SLOW[case]
    net, weights = network(name)
    assert_same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), chunk, tested=False, memory="adjoint")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of each traced graph; graphs are interpreted instead of compiled."""
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
    assert_same(net, algo, grown(algo.init(net, weights, SEED)), episodes(name), chunk, tested=False, memory="adjoint")
    assert len(traced) == (3 if getattr(algo, "steps", 0) > 1 else 1)


# The number of graphs: the code around the loop, one step, and the derivative of a step where there is one.
ROLLED = {"cavia": 3, "imaml": 2, "kfo": 3, "l2o": 3, "lstm": 3, "mamlpp": 3, "reptile": 2}


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 2])  # 2: under vmap, which is more
@pytest.mark.parametrize("name", ROLLED)
def test_presets_rolled(name: str, chunk: int, traced: list[int]) -> None:
    algo, net, meta, episode = prepared(name, "classes")
    assert_same(net, algo, grown(meta), episode, chunk, tested=False, memory="adjoint")
    assert len(traced) == ROLLED[name]


@pytest.mark.parametrize("chunk", [1, 2])
def test_code_does_not_grow_with_the_steps(chunk: int, traced: list[int]) -> None:
    net, weights = network("mlp-sine")
    for steps in (MAX_UNROLLED_STEPS + 1, 4 * MAX_UNROLLED_STEPS):
        algo = maml("batch", steps=steps, inner_lr=0.01)
        assert_same(net, algo, grown(algo.init(net, weights, SEED)), episodes("mlp-sine"), chunk, tested=False)
    assert traced[:3] == traced[3:]
    assert len(traced) == 6


def test_a_step_that_closes_over_a_tensor_is_not_rolled(traced: list[int]) -> None:
    """The tensor is another one at the next call."""

    def decayed(w: Tensor, rate: Tensor) -> Tensor:
        def step(w: Tensor, _consts: tuple[()], _k: StepIndex) -> Tensor:
            return w - rate * w

        return unroll_for("adjoint")(step, w, (), 9)

    notes: list[str] = []
    compiled: Compiled[Tensor, Tensor, Tensor] = Compiled(decayed, notes.append)
    for rate in (0.1, 0.2):
        found = compiled(torch.ones(3, dtype=torch.float64), torch.tensor(rate, dtype=torch.float64))
        assert torch.allclose(found, torch.full((3,), (1 - rate) ** 9, dtype=torch.float64), rtol=1e-12)
    assert (len(traced), notes) == (1, [])


def test_one_artefact_serves_every_step_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last chunk that is smaller is not compiled."""
    made: list[int] = []

    def counted(function: Any, args: Any) -> Any:
        made.append(len(args[1].index))
        return function

    monkeypatch.setattr(inductor, "compile_for", counted)
    net, weights = network("mlp")
    algo = maml("batch")
    engine = vmap_engine(2, "graph", "on").build(algo, net)
    meta = algo.init(net, weights, SEED)
    for step in range(3):
        engine.meta_grad(meta, episodes("mlp", tasks=5), step)
    assert made == [2]


def test_tracing_computes_nothing(traced: list[int]) -> None:
    """Tracing with values would take the memory of an eager step."""
    fake: list[bool] = []

    def doubled(x: Tensor) -> Tensor:
        fake.append(isinstance(x, FakeTensor))
        return x * 2

    notes: list[str] = []
    compiled: Compiled[Tensor, Tensor] = Compiled(doubled, notes.append)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
    assert fake == [True]
    assert len(traced) == 1
    assert notes == []


def test_a_failure_is_one_line_and_the_run_goes_on() -> None:
    notes: list[str] = []

    def peeks(x: Tensor) -> Tensor:
        return x * (2 if bool(x.sum() > 0) else 3)

    def broken(_function: Any, _args: Any) -> Any:
        raise RuntimeError("\nno compiler\nat all")

    compiled: Compiled[Tensor, Tensor] = Compiled(peeks, notes.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor, "compile_for", broken)
        for _ in range(2):
            assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert notes == ["compile: RuntimeError: no compiler; runs without it"]


def test_shapes_without_end_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def counted(function: Any, args: Any) -> Any:
        made.append(args)
        return function

    monkeypatch.setattr(inductor, "compile_for", counted)
    notes: list[str] = []
    compiled: Compiled[Tensor, Tensor] = Compiled(torch.sin, notes.append)
    for size in (*range(1, 9), 1, 8):
        assert compiled(torch.ones(size)).shape == (size,)
    assert len(made) == inductor.MAX_COMPILED_SHAPES
    assert len(notes) == 1
