"""Evaluation: adapts to a fixed list of episodes and measures the predictions for their queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metarun.data.tasks.contracts import Tasks
from metarun.measures import Estimate, Measure
from metarun.types import Engine, Meta


def evaluate(
    engine: Engine,
    meta: Meta,
    tasks: Tasks,
    measures: Sequence[Measure],
    episodes: int,
    batch: int,
    tick: Callable[[int], None],
) -> dict[str, Estimate]:
    """Each measure, by its name, over tasks 0 .. episodes - 1 of a split; `tick` is told how many are done."""
    rows = score_episodes(engine, meta, tasks, measures, torch.arange(episodes), batch, tick)
    return {measure.name: measure.estimate(rows[measure.name]) for measure in measures}


def score_episodes(
    engine: Engine,
    meta: Meta,
    tasks: Tasks,
    measures: Sequence[Measure],
    index_E: Tensor,
    batch: int,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """For each measure a tensor on the CPU with one row for each episode of `index_E`, scored in batches of `batch`.

    A row depends on its own episode alone, so episodes may be scored in several places and their rows put together.
    """
    found: dict[str, list[Tensor]] = {measure.name: [] for measure in measures}
    done = 0
    for index_T in torch.split(index_E, batch):
        parts = [
            (part.places, engine.scores(meta, part.episode), part.episode.query.y) for part in tasks.by_shape(index_T)
        ]
        order = torch.cat([places for places, _, _ in parts]).argsort()
        for measure in measures:
            rows = torch.cat([measure.of_tasks(outputs_TQN, y_TQ).cpu() for _, outputs_TQN, y_TQ in parts])
            found[measure.name].append(rows[order])
        done += len(index_T)
        tick(done)
    return {name: torch.cat(rows) for name, rows in found.items()}
