"""Tasks batched by vmap, `chunk` at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from metarun.engine.stacked import chunks, kept, learned, mean, num_tasks, total, total_over_tasks
from metarun.engine.unroll import unroll_graph
from metarun.types import Algorithm, Aux, Engine, Episode, Meta, Net


@dataclass(frozen=True)
class Vmap:
    chunk: int | None  # None: all tasks at once

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: need at least 1, or null for all tasks at once")

    def build(self, algo: Algorithm, net: Net) -> Engine:
        def summed_loss(params: Meta, buffers: Meta, episode: Episode, step: Tensor) -> tuple[Tensor, Aux]:
            def one(task: Episode) -> tuple[Tensor, Aux]:
                return algo.meta_loss(net, {**params, **buffers}, task, step, unroll_graph)

            losses_T, aux_T = vmap(one)(episode)
            return losses_T.sum(), total_over_tasks(aux_T)

        @torch.no_grad()
        def meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
            now = torch.tensor(step, device=episode.index.device)
            sums: tuple[Meta, Aux] | None = None
            for part in chunks(episode, self.chunk or num_tasks(episode)):
                sums = total(sums, grad(summed_loss, has_aux=True)(learned(meta), kept(meta), part, now))
            assert sums is not None, "an episode stack of no tasks"
            return mean(sums, num_tasks(episode))

        @torch.no_grad()
        def scores(meta: Meta, episode: Episode) -> Tensor:
            def one(task: Episode) -> Tensor:
                return algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)

            return torch.cat([vmap(one)(part) for part in chunks(episode, self.chunk or num_tasks(episode))])

        return Engine(meta_grad, scores)
