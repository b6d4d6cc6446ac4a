"""What every algorithm under conf/algo must keep; a new one is found by its YAML."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from copy import deepcopy
from dataclasses import MISSING, FrozenInstanceError, fields

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metarun.config.compose import compose
from metarun.config.convert import values_of
from metarun.engine.loop import Loop
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import BUFFERS, Kind
from support.contract import CASES, NAMES, NETS, algorithm, algorithm_class, first, prepared, values
from support.engines import vmap_engine
from support.small import WAYS, distance, network


def same(a: object, b: object) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_frozen_value_whose_numbers_are_all_in_its_yaml(name: str) -> None:
    algo = algorithm(name)
    numbers = fields(algo)
    with pytest.raises(FrozenInstanceError):
        setattr(algo, numbers[0].name, None)
    assert all(field.default is MISSING and field.default_factory is MISSING for field in numbers)
    assert {field.name for field in numbers} == values(name).keys() - {"_target_"}
    assert hash(algo) == hash(algorithm(name))
    assert algo.kinds <= {"classes", "values"}
    assert algo.kinds
    assert isinstance(algo.uses_head, bool)
    assert algo.trains_on in ("episodes", "batches", "nothing")


@pytest.mark.parametrize("name", ["mamlpp", "scratch", "snail"])  # files that take up others, and one that does not
def test_the_values_are_those_that_hydra_composes(name: str) -> None:
    words = [f"algo={name}", "~tuned", f"task.ways={WAYS}", "task.shots=2", "task.queries=2"]
    composed = values_of(compose(words).plain, "algo")
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in composed.items()} == values(name)


@pytest.mark.parametrize("name", NAMES)
def test_its_file_is_only_maths(name: str) -> None:
    source = inspect.getsource(sys.modules[algorithm_class(name).__module__])
    tree = ast.parse(source)
    called = {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "arXiv" in (ast.get_docstring(tree) or "")
    assert not called & {"item", "tolist", "print", "cpu", "cuda", "numpy", "log", "manual_seed"}
    assert not re.search(r"for \w*task\w* in", source)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_shapes_and_types(name: str, kind: Kind, dtype: torch.dtype) -> None:
    algo, net, meta, episode = prepared(name, kind, dtype)
    task = first(episode)
    loss, aux = algo.meta_loss(net, meta, task, torch.tensor(0), unroll_graph)
    out = algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)
    buffers = meta.get(BUFFERS, {})
    assert meta["weights"].keys() <= network(NETS[kind])[1].keys()
    assert loss.shape == ()
    assert {key: v.shape for key, v in aux.buffers.items()} == {key: v.shape for key, v in buffers.items()}
    assert aux.metrics.keys() == ({"loss", "acc"} if kind == "classes" else {"loss"})
    assert len(out) == len(task.query.y)
    assert out.shape[1] >= WAYS if kind == "classes" else out.shape == task.query.y.shape
    assert {v.dtype for v in tree_leaves((meta, loss, aux, out))} == {dtype}
    assert not any(v.requires_grad for v in tree_leaves(aux))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_is_pure_and_deterministic(name: str, kind: Kind) -> None:
    algo, net, meta, episode = prepared(name, kind)
    kept = deepcopy((meta, episode))
    engine = vmap_engine(None).build(algo, net)
    runs = [(engine.meta_grad(meta, episode, 3), engine.scores(meta, episode)) for _ in range(2)]
    assert same(runs[0], runs[1])
    assert same((meta, episode), kept)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_learned_number_has_a_gradient(name: str, kind: Kind) -> None:
    algo, net, meta, episode = prepared(name, kind)
    grads, aux = vmap_engine(None).build(algo, net).meta_grad(meta, episode, 0)
    assert {entry: group.keys() for entry, group in grads.items()} == {
        entry: group.keys() for entry, group in meta.items() if entry != BUFFERS
    }
    for entry, group in grads.items():
        for leaf, gradient in group.items():
            assert gradient.isfinite().all(), (entry, leaf)
            assert (gradient.abs().max() > 0) == (algo.trains_on != "nothing"), (entry, leaf)
    assert all(value.isfinite().all() for value in aux.metrics.values())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_engines_agree(name: str, kind: Kind) -> None:
    algo, net, meta, episode = prepared(name, kind)
    batched, single = vmap_engine(2).build(algo, net), Loop().build(algo, net)
    (found, found_aux), (expected, aux) = (engine.meta_grad(meta, episode, 0) for engine in (batched, single))
    assert distance(found, expected) < 1e-10
    assert distance(found_aux.metrics, aux.metrics) < 1e-10
    assert distance(batched.scores(meta, episode), single.scores(meta, episode)) < 1e-10


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_tasks_do_not_know_of_each_other(name: str, kind: Kind) -> None:
    algo, net, meta, episode = prepared(name, kind)
    order = torch.tensor([2, 0, 1])
    shuffled = tree_map(lambda stack: stack[order], episode)
    engine = vmap_engine(None).build(algo, net)
    assert distance(engine.scores(meta, shuffled), engine.scores(meta, episode)[order]) < 1e-10
    assert distance(engine.meta_grad(meta, shuffled, 0)[0], engine.meta_grad(meta, episode, 0)[0]) < 1e-10


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_keep_no_graph(name: str, kind: Kind) -> None:
    algo, net, meta, episode = prepared(name, kind)
    learned = {e: {n: v.clone().requires_grad_(e != BUFFERS) for n, v in group.items()} for e, group in meta.items()}
    for engine in (vmap_engine(None), Loop()):
        assert engine.build(algo, net).scores(learned, episode).grad_fn is None
        assert not any(v.requires_grad for v in tree_leaves(engine.build(algo, net).meta_grad(learned, episode, 0)))
