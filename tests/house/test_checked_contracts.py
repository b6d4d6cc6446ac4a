"""The run-time checks of contracts notice what they are there for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.data.tasks.contracts import SameShapeTasks
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import Aux, Batch, Engine, Episode, Meta
from support.checked_contracts import checked_by_shape
from support.small import SEED, episodes, maml, network

META: Meta = {"weights": {"w": torch.zeros(3, 2)}, "buffers": {"mean": torch.zeros(2)}}
AUX = Aux({"loss": torch.zeros(())}, {"mean": torch.zeros(2)})


def episode(queries: int = 4) -> Episode:
    support = Batch(torch.zeros(2, 6, 1, 5, 5), torch.zeros(2, 6, dtype=torch.int64))
    query = Batch(torch.zeros(2, queries, 1, 5, 5), torch.zeros(2, queries, dtype=torch.int64))
    return Episode(support, query, torch.arange(2))


def engine(gradient: Meta | None = None, aux: Aux = AUX, outputs: Tensor | None = None) -> Engine:
    found = {"weights": {"w": torch.zeros(3, 2)}} if gradient is None else gradient
    scores = torch.zeros(2, 4, 3) if outputs is None else outputs
    return Engine(lambda _meta, _episode, _step: (found, aux), lambda _meta, _episode: scores)


def tasks_of(stack: Episode) -> list[Episode]:
    return [tree_map(lambda value, i=i: value[i], stack) for i in range(len(stack.index))]


def train(checked: Engine) -> object:
    return checked.meta_grad(META, episode(), 0)


def score(checked: Engine) -> object:
    return checked.scores(META, episode())


def test_what_keeps_the_contract_passes() -> None:
    train(engine())
    score(engine())


@pytest.mark.parametrize(
    ("made", "use"),
    [
        (lambda: engine({"weights": {"w": torch.zeros(2, 3)}}), train),
        (lambda: engine({"weights": {}}), train),
        (lambda: engine({**META}), train),
        (lambda: engine(aux=AUX._replace(metrics={"loss": torch.zeros(1)})), train),
        (lambda: engine(aux=AUX._replace(metrics={})), train),
        (lambda: engine(aux=AUX._replace(buffers={})), train),
        (lambda: engine(outputs=torch.zeros(2, 5, 3)), score),
        (lambda: engine(outputs=torch.zeros(2, 4)), score),
        (lambda: engine(outputs=torch.zeros(2, 4, 3, dtype=torch.int64)), score),
    ],
)
def test_a_wrong_answer_of_an_engine_is_noticed(made: Callable[[], Engine], use: Callable[[Engine], object]) -> None:
    with pytest.raises(Exception, match=r"[Tt]ype|gradient|buffers|weights|metrics"):
        use(made())


def test_wrong_episodes_are_noticed() -> None:
    right = episode()
    for wrong in (
        right._replace(query=Batch(torch.zeros(2, 4, 1, 5, 6), right.query.y)),
        right._replace(support=Batch(right.support.x, right.support.y[:, :5])),
        right._replace(index=torch.arange(3)),
    ):
        with pytest.raises(Exception, match=r"[Tt]ype"):
            engine().scores(META, wrong)


def test_a_wrong_answer_of_an_algorithm_is_noticed() -> None:
    net, weights = network("mlp")
    algo = maml("batch")
    meta = algo.init(net, weights, SEED)
    task = tasks_of(episodes("mlp"))[0]
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    assert len(algo.predict(net, meta, adapted, task.query.x)) == len(task.query.x)
    with pytest.raises(Exception, match=r"[Tt]ype"):
        algo.predict(lambda *_: (torch.zeros(7, 3), {}), meta, adapted, task.query.x)  # type: ignore[arg-type]  # wrong
    with pytest.raises(Exception, match=r"[Tt]ype"):
        algo.adapted(net, meta, task.support._replace(y=task.support.y[:-1]), unroll_graph)


def test_a_sampler_that_loses_a_task_is_noticed() -> None:
    class Loses:
        def by_shape(self, index_T: Tensor) -> list[SameShapeTasks]:
            return [SameShapeTasks(index_T[1:], episode(), 3, 2)]

    with pytest.raises(AssertionError, match="places"):
        checked_by_shape(Loses.by_shape)(Loses(), torch.arange(2))
