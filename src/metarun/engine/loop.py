"""One task after another by plain autograd: the least memory, and the measure for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.engine.task_axis import kept, learned, leaves, mean, num_tasks, tasks, total
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import Adaptation, Algorithm, Aux, Engine, Episode, Meta, Net


@dataclass(frozen=True)
class Loop:
    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        def one(meta: Meta, task: Episode, step: Tensor) -> tuple[Meta, Aux]:
            params = leaves(learned(meta))
            with torch.enable_grad():
                loss, aux = algo.meta_loss(net, {**params, **kept(meta)}, task, step, unroll_graph)
            named = [(entry, name) for entry, group in params.items() for name in group]
            inputs = [params[entry][name] for entry, name in named]
            gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
            grads: Meta = {entry: {} for entry in params}
            for (entry, name), gradient in zip(named, gradients, strict=True):
                grads[entry][name] = gradient
            return grads, aux

        def meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
            now = torch.tensor(step, device=episode.index.device)
            sums: tuple[Meta, Aux] | None = None
            for task in tasks(episode):
                sums = total(sums, one(meta, task, now))
            assert sums is not None, "an episode stack of no tasks"
            return mean(sums, num_tasks(episode))

        @torch.no_grad()
        def scores(meta: Meta, episode: Episode) -> Tensor:
            def predicted(task: Episode) -> Tensor:
                return algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)

            return torch.stack([predicted(task) for task in tasks(episode)])

        return Engine(meta_grad, scores)
