"""Tasks batched by vmap, `chunk` at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from metarun.engine.compile.cuda_graph import Captured
from metarun.engine.compile.inductor import Compiled
from metarun.engine.task_axis import chunks, kept, learned, mean, num_tasks, slopes, tasks, total, total_over_tasks
from metarun.engine.unroll.adjoint import unroll_adjoint, unroll_checkpoint
from metarun.engine.unroll.rolled import UNROLLED, rolled
from metarun.engine.unroll.stored import Memory, unroll_graph
from metarun.types import Adaptation, Algorithm, Aux, Engine, Episode, Meta, Net, Unroll

CPU_CHUNK = 8  # more fall out of the cache: 177 tasks/s by 8, 137 by 16, conv4 of 32 on 28x28 images, two cores
# Compiled, a task's pass stays in the cache: 211 ms by 1, 220 by 8, conv4-64 with pooling, 32 tasks. So it is 1 then.
IMAGES = 5  # dimensions of x_TSCHW; all tasks of anything smaller fit: sine, 25 tasks, 4 times as fast as by 8
UNROLL: dict[str, Unroll] = {"graph": unroll_graph, "checkpoint": unroll_checkpoint, "adjoint": unroll_adjoint}


@dataclass(frozen=True)
class Vmap:
    chunk: int | Literal["auto"] | None  # None: all tasks at once
    memory: Memory = "graph"
    compile: Literal["auto", "on", "off"] = "off"  # auto: somebody else decides, and until then it is off
    cuda_graph: Literal["on", "off"] = "off"

    def __post_init__(self) -> None:
        if isinstance(self.chunk, int) and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: need at least 1, auto, or null for all tasks at once")
        if self.memory not in UNROLL:
            raise ValueError(f"memory={self.memory}: choose one of {', '.join(UNROLL)}")

    def size(self, episode: Episode) -> int:
        x = episode.support.x
        if self.chunk == "auto" and x.device.type == "cpu" and x.dim() == IMAGES:
            single = self.compile == "on" or self.memory != "graph"
            return min(1 if single else CPU_CHUNK, num_tasks(episode))
        return self.chunk if isinstance(self.chunk, int) else num_tasks(episode)

    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        unroll = rolled(UNROLLED if self.memory == "graph" else 1, UNROLL[self.memory])
        notes: list[str] = []

        def summed_grad(meta: Meta, part: Episode, now: Tensor) -> tuple[Meta, Aux]:
            def loss(params: Meta) -> tuple[Tensor, Aux]:
                def one(task: Episode) -> tuple[Tensor, Aux]:
                    return algo.meta_loss(net, {**params, **kept(meta)}, task, now, unroll)

                losses_T, aux_T = over_tasks(one, part)
                return losses_T.sum(), total_over_tasks(aux_T)

            return slopes(loss, learned(meta))

        def outputs(meta: Meta, part: Episode) -> Tensor:
            def one(task: Episode) -> Tensor:
                return algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll), task.query.x)

            found: Tensor = over_tasks(one, part)
            return found

        grad_of = self._executed(summed_grad, notes, self.cuda_graph == "on")
        scores_of = self._executed(outputs, notes, captured=False)  # what one call gives must outlast the next

        @torch.no_grad()
        def meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
            now = torch.full((), step, device=episode.index.device)
            size = self.size(episode)
            sums: tuple[Meta, Aux] | None = None
            for part in chunks(episode, size):
                sums = total(sums, grad_of(size, part)(meta, part, now))
            assert sums is not None, "an episode stack of no tasks"
            return mean(sums, num_tasks(episode))

        @torch.no_grad()
        def scores(meta: Meta, episode: Episode) -> Tensor:
            size = self.size(episode)
            return torch.cat([scores_of(size, part)(meta, part) for part in chunks(episode, size)])

        return Engine(meta_grad, scores, notes)

    def _executed(
        self, function: Callable[..., Any], notes: list[str], captured: bool
    ) -> Callable[[int, Episode], Callable[..., Any]]:
        """Which form of `function` a chunk goes through: a last one that is smaller is not worth compiling for."""
        fast = function
        if self.compile == "on":
            fast = Compiled(fast, notes.append)
        if captured:
            fast = Captured(fast)
        return lambda size, part: fast if num_tasks(part) == size else function


def over_tasks(function: Callable[[Episode], Any], episode: Episode) -> Any:
    if num_tasks(episode) > 1:
        return vmap(function)(episode)
    # One task needs no grouped convolutions.
    return tree_map(lambda value: value.unsqueeze(0), function(next(tasks(episode))))
