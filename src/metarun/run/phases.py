"""What all ranks do together: training, and the test of the best weights."""

from __future__ import annotations

import torch

from metarun.config.schema import RunConfig
from metarun.measures import Estimate
from metarun.run.build import Parts, train_tasks
from metarun.run.checkpoint import decode_checkpoint
from metarun.run.meta_test import score_test_split
from metarun.run.provenance import peak_mb
from metarun.run.session import SilentSession
from metarun.train.evaluate import evaluate
from metarun.train.loop import Intervals, meta_train
from metarun.train.state import State
from metarun.types import Meta


def train(config: RunConfig, parts: Parts, session: SilentSession) -> None:
    steps, every = config.train, config.eval.every
    val_tasks = parts.data.tasks("val", config.task.test, config.seed)

    def validate(state: State) -> Estimate:
        episodes, measure = config.eval.val_episodes, session.measure
        tick, batch = session.ticker("meta-validate", episodes), config.eval.tasks_at_once
        with session.outside_training_time():
            weights = session.evaluated(state)
            found = evaluate(parts.engine, weights, val_tasks, (measure,), episodes, batch, tick, session.ranks)
        return found[measure.name]

    meta_train(
        session.state,
        parts.engine,
        train_tasks(config, parts.data),
        validate,
        session.outer,
        Intervals(steps.steps, steps.meta_batch, steps.log_every, every, steps.save_every),
        session.measure,
        session,
        session.ranks,
        session.stop,
    )


def score_best(config: RunConfig, parts: Parts, session: SilentSession) -> tuple[Meta, dict[str, Estimate]]:
    """The best weights, which rank 0 has in best.pt, and their score on the test split."""
    file = session.ranks.from_first(session.best_file())
    best: Meta = decode_checkpoint(file, config.folder / "best.pt", config.device)["meta"]
    with session.outside_training_time():
        tick = session.ticker("meta-test", config.eval.test_episodes)
        return best, score_test_split(config, parts, best, tick, session.ranks)


def peak_mb_of_all(config: RunConfig, session: SilentSession) -> float:
    """The most memory that each rank has held, summed."""
    return float(session.ranks.sum(torch.tensor(peak_mb(config.device), dtype=torch.float64)))
