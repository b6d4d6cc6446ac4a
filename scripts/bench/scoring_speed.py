"""Times the scoring of 600 Omniglot test episodes by MAML: metarun against learn2learn, same episodes and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import timing
from bench.peer_loops import each_task, task_loss
from bench.time_to_accuracy import QUICK_OVERRIDES, make_omniglot_job
from bench.torch_modules import torch_module
from bench.workloads import Job, load_config
from metarun.algos.maml import MAML
from metarun.config.schema import RunConfig
from metarun.data.tasks.contracts import TaskData
from metarun.run.build import build_parts, open_data
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Batch, Episode

OVERRIDES = (
    "data=omniglot",
    "task=5w1s",
    "task.queries=1",
    "model=conv4",
    "model.width=64",
    "algo=maml",
    "algo.steps=1",
    "algo.test_steps=3",
    "algo.inner_lr=0.4",
    "algo.loss_reduction=mean",
)
EPISODES, BATCH = 600, 50
QUICK_EPISODES, GATE_EPISODES = 6, 4
Scores = Callable[[Episode], Tensor]


def measure(device: torch.device, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    overrides = (*OVERRIDES, *QUICK_OVERRIDES) if quick else OVERRIDES
    config = dataclasses.replace(load_config(overrides), device=device)
    data, count = open_data(config, say), QUICK_EPISODES if quick else EPISODES
    drawn = data.tasks("test", config.task.test, config.seed)
    batches = [drawn(torch.arange(first, min(first + BATCH, count))) for first in range(0, count, BATCH)]
    job = _job(config, data, batches[0], torch.float32)
    exact = _job(config, data, drawn(torch.arange(GATE_EPISODES)), torch.float64)
    expected = learn2learn(exact)(exact.episode)
    makers = {"vmap": _metarun("off"), "learn2learn": learn2learn, **({} if quick else {"compiled": _metarun("on")})}
    rows: dict[str, Any] = {}
    for name, make in makers.items():
        say(f"scores: {name}: gate")
        error = float((make(exact)(exact.episode) - expected).norm() / expected.norm())
        if not error < timing.TOLERANCE:
            raise SystemExit(f"{name}: outputs in float64 differ from learn2learn's by {error:.1e}")
        rows[name] = {"error": error, "seconds": []}
    contenders = {name: make(job) for name, make in makers.items()}
    for number, episode in enumerate((batches[0], *batches)):
        for name, scores in contenders.items():
            took = timing.seconds(partial(scores, episode), device, once=True)
            if number:  # the first call warms up and compiles
                rows[name]["seconds"].append(took)
        say(f"scores: {min(number * BATCH, count)} of {count} episodes")
    for row in rows.values():
        row["total_s"] = sum(row["seconds"])
    return {"overrides": list(overrides), "episodes": count, "rows": timing.with_ratios(rows)}


def _job(config: RunConfig, data: TaskData, episode: Episode, dtype: torch.dtype) -> Job:
    parts = build_parts(config, data)
    meta = {group: {name: value.to(dtype) for name, value in params.items()} for group, params in parts.meta.items()}
    support, query = (Batch(batch.x.to(dtype), batch.y) for batch in (episode.support, episode.query))
    job = make_omniglot_job(config, parts, Episode(support, query, episode.index))
    job.net.module.to(dtype)
    return dataclasses.replace(job, meta=meta)


def _metarun(compile: str) -> Callable[[Job], Scores]:
    def make(job: Job) -> Scores:
        engine = dataclasses.replace(job.config.engine, compile=compile).build(job.algo, job.net)
        return lambda episode: engine.scores(job.meta, episode)

    return make


def learn2learn(job: Job) -> Scores:
    """clone, adapt, predict; without the second-order graph, which only training needs."""
    library, algo = quiet_import("learn2learn"), job.algo
    assert isinstance(algo, MAML), f"no learn2learn loop for {algo}"
    learned = library.algorithms.MAML(torch_module(job), lr=algo.inner_lr, first_order=True)

    def scores_of_task(x_s: Tensor, y_s: Tensor, x_q: Tensor) -> Tensor:
        learner = learned.clone()
        for _ in range(algo.test_steps):
            learner.adapt(task_loss(learner(x_s), y_s))
        with torch.no_grad():
            found: Tensor = learner(x_q)
        return found

    return lambda episode: torch.stack([scores_of_task(x_s, y_s, x_q) for x_s, y_s, x_q, _ in each_task(episode)])
