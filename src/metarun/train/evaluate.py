"""The score of a fixed list of episodes: per episode, and its mean with a 95 % confidence interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metarun.data.tasks.contracts import Tasks
from metarun.types import Engine, Kind, Meta

Measure = Literal["acc", "mse"]
MEASURE: dict[Kind, Measure] = {"classes": "acc", "values": "mse"}
Z_95 = 1.959963984540054  # standard normal, two-sided 95 %


class Score(NamedTuple):
    mean: float
    ci95: float  # half width
    per_episode: Tensor  # float64, on the CPU


def measure(kind: Kind, outputs_TQN: Tensor, y_TQ: Tensor) -> Tensor:
    """One number a task: accuracy for classes, mean squared error for values."""
    if kind == "classes":
        return (outputs_TQN.argmax(-1) == y_TQ).double().mean(-1)
    return (outputs_TQN.double() - y_TQ.double()).square().flatten(1).mean(-1)


def better(kind: Kind, score: float, than: float) -> bool:
    return score > than if kind == "classes" else score < than


def summarise(per_episode: Tensor) -> Score:
    count = len(per_episode)
    assert count > 1, f"an interval needs more than {count} episode"
    half = Z_95 * per_episode.std(correction=1).item() / count**0.5
    return Score(per_episode.mean().item(), half, per_episode)


def evaluate(
    engine: Engine, meta: Meta, tasks: Tasks, kind: Kind, episodes: int, batch: int, tick: Callable[[int], None]
) -> Score:
    """Tasks 0 .. episodes - 1 of a split; `tick` hears how many are done."""
    scores = []
    for start in range(0, episodes, batch):
        index_T = torch.arange(start, min(start + batch, episodes))
        score_T = torch.empty(len(index_T), dtype=torch.float64)
        for places, episode, *_ in tasks.parts(index_T):
            outputs_TQN = engine.scores(meta, episode)
            score_T[places] = measure(kind, outputs_TQN, episode.query.y).cpu()
        scores.append(score_T)
        tick(min(start + batch, episodes))
    return summarise(torch.cat(scores))
