"""What several ranks do together in a test: each runs the same functions, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from metarun.config.compose import compose
from metarun.config.schema import RunConfig, check_config
from metarun.engine.ranks import STOP_SIGNALS, RankGroup, Ranks
from metarun.measures import measures_for
from metarun.run import build
from metarun.run.build import prepare, train_tasks
from metarun.train.evaluate import evaluate
from metarun.train.loop import mean_over_shapes
from metarun.types import Aux, Meta
from support import small

EPISODES = 5  # evaluated: not a multiple of the ranks
STEPS = 6


class Order(TypedDict):
    """Configurations in plain values, by name."""

    configs: dict[str, Any]


def configs_of(cases: Mapping[str, list[str]]) -> Order:
    composed = {name: compose(words) for name, words in cases.items()}
    return {"configs": {name: {"plain": one.plain, "choices": one.choices} for name, one in composed.items()}}


def work(ranks: RankGroup, order: Order) -> None:
    """The task of a started rank."""
    build.DTYPE = torch.float64
    step_all(ranks, order)
    stopped_at(ranks)


def fail(_ranks: RankGroup, _order: object) -> None:
    raise ValueError("two\nlines")


def step_all(ranks: Ranks, order: Order) -> dict[str, dict[str, torch.Tensor]]:
    """For each configuration a meta-step and an evaluation, flat."""
    found = {}
    for name, values in order["configs"].items():
        config = check_config(values["plain"], values["choices"])
        parts = prepare(config, lambda _: None)
        doubled = {group: {n: v.double() for n, v in params.items()} for group, params in parts.meta.items()}
        parts = parts._replace(meta=small.grown(doubled))
        grads, aux = meta_step(config, parts, ranks)
        tasks, measures = parts.data.tasks("val", config.task.test, config.seed), measures_for(config.kind)
        scores = evaluate(parts.engine, parts.meta, tasks, measures, EPISODES, 1, lambda _: None, ranks)
        found[name] = {
            "grads": torch.cat([small.flat(params) for params in grads.values()]),
            "metrics": small.flat(aux.metrics),
            "buffers": small.flat(aux.buffers),
            "scores": torch.cat([one.per_episode.flatten() for one in scores.values()]),
        }
    return found


def meta_step(config: RunConfig, parts: build.Parts, ranks: Ranks) -> tuple[Meta, Aux]:
    index_T = ranks.share(torch.arange(config.train.meta_batch))
    groups = train_tasks(config, parts.data).by_shape(index_T)
    grads, aux = mean_over_shapes([parts.engine.meta_grad(parts.meta, group.episode, 1) for group in groups], groups)
    return ranks.mean(grads, aux, len(index_T) / config.train.meta_batch, None)


def stopped_at(ranks: Ranks) -> tuple[list[float], int | None, int | None]:
    """The last rank is asked to stop in step 2. Returns the step at which each rank knows it, and the signals known."""
    step, signal_known = 0, None
    for step in range(STEPS):
        signal_known = ranks.stop_after_step(None)
        if signal_known is not None:
            break
        asked = STOP_SIGNALS[1] if step == 2 and ranks.rank == ranks.count - 1 else None
        values = {"a": torch.ones(3)}
        ranks.mean({"weights": values}, Aux(values, {}), 1 / ranks.count, asked)
    known = torch.zeros(ranks.count)
    known[ranks.rank] = step
    return ranks.sum(known).tolist(), signal_known, ranks.stop_anywhere(None)
