"""What is compiled computes the same as what is not, once for all steps and chunks; what cannot be compiled goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn.functional import conv2d

from metarun.algos.protonet import ProtoNet
from metarun.engine import compiled
from metarun.engine.compiled import Compiled
from metarun.engine.convolution import ClosedConvolutions
from metarun.engine.vmap import Vmap
from small import SEED, distance, episodes, grown, maml, metasgd, network
from test_contract import prepared

EXACT = 1e-10
CASES: dict[str, Any] = {
    "maml": ("conv4-pooled", maml("batch", steps=1, test_steps=1)),
    "maml-mlp": ("mlp-sine", maml("batch", test_steps=1)),
}
SLOW: dict[str, Any] = {
    "maml-mlp-steps": ("mlp-sine", maml("batch", steps=3, test_steps=2)),
    "maml-steps": ("conv4-strided", maml("running", steps=3, test_steps=2)),
    "fomaml": ("conv4-strided", maml("batch", order="first")),
    "anil": ("conv4-pooled", maml("running", adapt=("head.*",))),
    "metasgd": ("conv4-strided", metasgd("batch")),
    "protonet": ("conv4-pooled", ProtoNet("euclidean", "running")),
    "protonet-mlp": ("mlp-batch", ProtoNet("euclidean", "batch")),
    "late": ("mlp-batch", maml("batch", second_order_from=2)),
}


def same(net: Any, algo: Any, meta: Any, episode: Any, chunk: int, tested: bool) -> None:
    fast, plain = (Vmap(chunk, "graph", how).build(algo, net) for how in ("on", "off"))
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


def test_one_artefact_serves_every_step_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a last chunk that is smaller goes without."""
    made: list[int] = []

    def counted(function: Any, args: Any) -> Any:
        made.append(len(args[1].index))
        return function

    monkeypatch.setattr(compiled, "compiled", counted)
    net, weights = network("mlp")
    algo = maml("batch")
    engine = Vmap(2, "graph", "on").build(algo, net)
    meta = algo.init(net, weights, SEED)
    for step in range(3):
        engine.meta_grad(meta, episodes("mlp", tasks=5), step)
    assert made == [2]


def test_a_failure_is_one_line_and_the_run_goes_on() -> None:
    notes: list[str] = []

    def peeks(x: Tensor) -> Tensor:
        return x * (2 if bool(x.sum() > 0) else 3)

    def broken(_function: Any, _args: Any) -> Any:
        raise RuntimeError("\nno compiler\nat all")

    wrapped: Compiled[Tensor] = Compiled(peeks, notes.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiled", broken)
        for _ in range(2):
            assert torch.equal(wrapped(torch.ones(2)), torch.full((2,), 2.0))
    assert notes == ["compile: RuntimeError: no compiler; goes on without"]


def test_shapes_without_end_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def counted(function: Any, args: Any) -> Any:
        made.append(args)
        return function

    monkeypatch.setattr(compiled, "compiled", counted)
    notes: list[str] = []
    wrapped: Compiled[Tensor] = Compiled(torch.sin, notes.append)
    for size in (*range(1, 9), 1, 8):
        assert wrapped(torch.ones(size)).shape == (size,)
    assert len(made) == compiled.MOST_SHAPES
    assert len(notes) == 1


@pytest.mark.parametrize(
    "sizes", [{}, {"stride": 2, "padding": 1}, {"padding": (1, 0), "dilation": (1, 2)}, {"groups": 2}]
)
@pytest.mark.parametrize("tasks", [False, True])
def test_convolutions_closed_under_differentiation(sizes: dict[str, Any], tasks: bool) -> None:
    """Value, gradient and second derivatives are torch's."""
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 7, 6, generator=dice).double()
    w = torch.randn(3, 4, 4 // sizes.get("groups", 1), 3, 3, generator=dice).double()
    b = torch.randn(3, 4, generator=dice).double()

    def value(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return conv2d(x, w, b, **sizes).sin().sum()

    def pulled(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        parts = [(d.square() * d).sum() for d in grad(value, argnums=(0, 1, 2))(x, w, b)]
        return torch.stack(parts).sum()

    def all_of(x: Tensor, w: Tensor, b: Tensor) -> Any:
        return value(x, w, b), jacrev(value, argnums=(0, 1, 2))(x, w, b), grad(pulled, argnums=(0, 1, 2))(x, w, b)

    run = vmap(all_of) if tasks else lambda x, w, b: all_of(x[0], w[0], b[0])
    expected = run(x, w, b)
    with ClosedConvolutions():
        found = run(x, w, b)
    for a, e in zip((found[0], *found[1], *found[2]), (expected[0], *expected[1], *expected[2]), strict=True):
        assert torch.allclose(a, e, rtol=1e-11, atol=1e-11)
