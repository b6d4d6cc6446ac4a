"""One task after another by plain autograd: the least memory, and the reference for the other engines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.engine.task_axis import (
    accumulate,
    buffers_only,
    divide_by_count,
    learned_only,
    loss_gradient,
    num_tasks,
    tasks,
)
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import Adaptation, Algorithm, Aux, Engine, Episode, Meta, Net


@dataclass(frozen=True)
class Loop:
    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        def meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
            step_tensor = torch.tensor(step, device=episode.index.device)
            sums: tuple[Meta, Aux] | None = None
            for task in tasks(episode):

                def meta_loss(learned: Meta, task: Episode = task) -> tuple[Tensor, Aux]:
                    return algo.meta_loss(net, {**learned, **buffers_only(meta)}, task, step_tensor, unroll_graph)

                sums = accumulate(sums, loss_gradient(meta_loss, learned_only(meta)))
            assert sums is not None, "an episode of no tasks"
            return divide_by_count(sums, num_tasks(episode))

        @torch.no_grad()
        def scores(meta: Meta, episode: Episode) -> Tensor:
            def outputs_QN(task: Episode) -> Tensor:
                return algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)

            return torch.stack([outputs_QN(task) for task in tasks(episode)])

        return Engine(meta_grad, scores)
