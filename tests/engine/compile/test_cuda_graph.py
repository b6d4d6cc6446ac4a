"""CUDA graphs, emulated on the CPU: a capture records its operations and undoes them, a replay does them in place."""

from __future__ import annotations

import contextlib
import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metarun.config.compose import compose
from metarun.config.schema import RunConfig, check_config
from metarun.engine.compile import cuda_graph
from metarun.run import build
from metarun.run.checkpoint import read_checkpoint, save_checkpoint
from metarun.train.outer import OuterStep
from metarun.train.state import State
from metarun.types import Aux


class Graph:
    """torch.cuda.CUDAGraph: the same kernels on the same memory."""

    made = 0

    def __init__(self) -> None:
        Graph.made += 1
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            for place, value in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor):
                    place.copy_(value)


class Recording(TorchDispatchMode):
    """torch.cuda.graph: leaves all that was there before as it was."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.graph = graph
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.is_mutable:
            self.before.extend((leaf, leaf.clone()) for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, result))
        return result

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]  # likewise
        for place, value in reversed(self.before):
            place.copy_(value)


class Stream:
    def wait_stream(self, _other: Any) -> None: ...


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "capturable", lambda _: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(import_module("torch.optim.adam"), "_get_capturable_supported_devices", lambda **_: ["cpu"])
    monkeypatch.setattr(build, "DTYPE", torch.float64)
    Graph.made = 0


OUTER = ("optim/schedule=cosine", "optim.schedule.final=0.1", "train.steps=8", "train.outer=[{clip_by_norm:0.5}]")


def configured(*words: str) -> RunConfig:
    composed = compose(["model.width=8", "track=local", "engine.cuda_graph=on", "engine.compile=off", *OUTER, *words])
    return check_config(composed.plain, composed.choices)


@pytest.mark.parametrize("algo", ["maml", "protonet", "reptile"])
def test_a_replayed_meta_gradient_is_that_of_its_own_tasks(algo: str) -> None:
    config = configured(f"algo={algo}", "engine.chunk=2")
    parts = build.prepare(config, lambda _: None)
    plain = dataclasses.replace(config.engine, cuda_graph="off").build(config.algo, parts.net)
    tasks = build.train_tasks(config, parts.data)
    meta = {group: {name: value.double() for name, value in params.items()} for group, params in parts.meta.items()}
    for number in range(3):
        episode = tasks(torch.arange(4 * number, 4 * number + 4))
        found, aux = parts.engine.meta_grad(meta, episode, number)
        expected, plain_aux = plain.meta_grad(meta, episode, number)
        assert aux.metrics["loss"].item() == pytest.approx(plain_aux.metrics["loss"].item(), rel=1e-12)
        for group, params in expected.items():
            for name, value in params.items():
                assert torch.allclose(found[group][name], value, rtol=1e-10, atol=1e-12), f"{group} {name}"
        meta = {group: {name: 1.1 * value for name, value in params.items()} for group, params in meta.items()}
    assert Graph.made == 1


def gradients(step: int) -> dict[str, dict[str, Tensor]]:
    dice = torch.Generator().manual_seed(step)
    values = {name: torch.randn(shape, generator=dice, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {"weights": values}


SHAPES = {"a": (3, 4), "b": (5,)}


def begun(config: RunConfig) -> tuple[State, OuterStep]:
    meta = {"weights": {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}}
    return build.new_state(config, meta), build.build_outer_step(config)


def advanced(state: State, outer: OuterStep, until: int) -> None:
    while state.step < until:
        outer(state, gradients(state.step), Aux({"loss": torch.ones(())}, {}))
        state.step += 1


CHAINS = {  # transforms of the outer step -> graphs, and those of a run resumed at step 4
    "[{clip_by_value: 0.1}]": (1, 1),
    "[{clip_by_norm: 0.5}]": (1, 1),
    "[{accumulate: 2},{clip_by_norm: 0.5}]": (2, 2),
    "[{skip_not_finite: 3}]": (1, 1),
    "[{moving_average: 0.5}]": (1, 1),
    "[{skip_not_finite: 3},{clip_by_norm: 0.5},{accumulate: 2},{moving_average: 0.5}]": (
        2,
        0,
    ),  # after a first step as launched
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("optim", ["adam", "adamw"])
def test_a_replayed_outer_step_equals_the_launched_one(optim: str, chain: str, tmp_path: Path) -> None:
    plain, launched = begun(configured(f"optim={optim}", f"train.outer={chain}"))
    advanced(plain, launched, 8)
    assert Graph.made == 0
    words = (f"optim={optim}", f"train.outer={chain}")
    cuda = dataclasses.replace(configured(*words), device=torch.device("cuda"))
    state, outer = begun(cuda)
    advanced(state, outer, 4)
    again, resumed = begun(cuda)
    save_checkpoint(tmp_path / "last.ckpt", state, {})
    again.restore(read_checkpoint(tmp_path / "last.ckpt", torch.device("cpu")))
    for each, step in ((state, outer), (again, resumed)):
        advanced(each, step, 8)
        for name, value in plain.meta["weights"].items():
            moved = each.meta["weights"][name] - 1
            assert torch.allclose(moved, value - 1, rtol=1e-4), name  # torch then counts steps in float32
            assert torch.equal(each.meta["weights"][name], state.meta["weights"][name])
        assert all(map(torch.equal, tree_leaves(each.outer), tree_leaves(state.outer)))
    for found, wanted in zip(tree_leaves(state.outer), tree_leaves(plain.outer), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5)
    assert Graph.made == sum(CHAINS[chain])


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_another_device(devices: tuple[str, str], tmp_path: Path) -> None:
    first, second = (dataclasses.replace(configured(), device=torch.device(name)) for name in devices)
    plain, launched = begun(configured())
    advanced(plain, launched, 8)
    state, outer = begun(first)
    advanced(state, outer, 4)
    save_checkpoint(tmp_path / "last.ckpt", state, {})
    again, resumed = begun(second)
    again.restore(read_checkpoint(tmp_path / "last.ckpt", torch.device("cpu")))
    advanced(again, resumed, 8)
    for name, value in plain.meta["weights"].items():
        assert torch.allclose(again.meta["weights"][name] - 1, value - 1, rtol=1e-4), name
    assert [group["capturable"] for group in again.optimizer.param_groups] == [second.device.type == "cuda"]
    assert Graph.made == 1
