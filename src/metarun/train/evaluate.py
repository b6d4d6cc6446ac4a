"""Evaluation: adapts to a fixed list of episodes and measures the predictions for their queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metarun.data.tasks.contracts import Tasks
from metarun.engine.ranks import Ranks
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
    ranks: Ranks,
) -> dict[str, Estimate]:
    """Each measure, by its name, over tasks 0 .. episodes - 1 of a split; `tick` is told how many are done.

    Every rank scores its share of the episodes, and all ranks get the same result.
    """
    rows = score_episodes(engine, meta, tasks, measures, torch.arange(episodes), batch, tick, ranks)
    return {measure.name: measure.estimate(rows[measure.name]) for measure in measures}


def score_episodes(
    engine: Engine,
    meta: Meta,
    tasks: Tasks,
    measures: Sequence[Measure],
    index_E: Tensor,
    batch: int,
    tick: Callable[[int], None],
    ranks: Ranks,
) -> dict[str, Tensor]:
    """For each measure a tensor on the CPU with one row for each episode of `index_E`; a rank scores `batch` at a time.

    A row depends on its own episode alone. So each rank leaves the rows of the others 0, and the sum has all rows.
    """
    found: dict[str, list[Tensor]] = {measure.name: [] for measure in measures}
    done = 0
    for index_T in torch.split(index_E, batch * ranks.count):
        own = ranks.share(torch.arange(len(index_T)))
        # A rank that has no episode left scores one all the same: it shows the shape of a row.
        parts = tasks.by_shape(index_T[own] if len(own) else index_T[:1])
        outputs = [engine.scores(meta, part.episode) for part in parts]
        order = torch.cat([part.places for part in parts]).argsort()[: len(own)]
        for measure in measures:
            pairs = zip(outputs, (part.episode.query.y for part in parts), strict=True)
            scored = torch.cat([measure.of_tasks(outputs_TQN, y_TQ).cpu() for outputs_TQN, y_TQ in pairs])
            rows = scored.new_zeros(len(index_T), *scored.shape[1:])
            rows[own] = scored[order]
            found[measure.name].append(rows)
        done += len(index_T)
        tick(done)
    return {name: ranks.sum(torch.cat(rows)) for name, rows in found.items()}
