"""Tasks batched by torch.func.vmap, `chunk` tasks at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.engine.compile.cuda_graph import Captured
from metarun.engine.compile.inductor import Compiled
from metarun.engine.task_axis import (
    accumulate,
    buffers_only,
    chunks,
    divide_by_count,
    learned_only,
    loss_gradient,
    num_tasks,
    sum_over_tasks,
    tasks,
)
from metarun.engine.trees import Args, TensorTree, map_tensors
from metarun.engine.unroll import UNROLLS, UnrollMemory, unroll_for
from metarun.types import Adaptation, Algorithm, Aux, Engine, Episode, Meta, Net

# Tasks at a time with chunk=auto. On a CPU more image tasks leave the cache: 177 tasks/s by 8, 137 by 16 (conv4 of 32
# on 28x28 images, two cores). Compiled code keeps one task in the cache: 211 ms by 1, 220 by 8 (conv4-64 with pooling,
# 32 tasks). Anything smaller than images: all tasks, 4 times as fast as by 8 (sine, 25 tasks).
CPU_CHUNK, COMPILED_CHUNK = 8, 1
IMAGE_STACK_DIMS = 5  # x_TSCHW


@dataclass(frozen=True)
class Vmap:
    chunk: int | Literal["auto"] | None  # None: all tasks at once
    memory: UnrollMemory
    compile: Literal["auto", "on", "off"]  # auto: decided by run/execution.py; off until then
    cuda_graph: Literal["on", "off"]

    def __post_init__(self) -> None:
        if isinstance(self.chunk, int) and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: need at least 1, auto, or null for all tasks at once")
        if self.memory not in UNROLLS:
            raise ValueError(f"memory={self.memory}: choose one of {', '.join(UNROLLS)}")

    def chunk_size(self, episode: Episode) -> int:
        x = episode.support.x
        if self.chunk == "auto" and x.device.type == "cpu" and x.dim() == IMAGE_STACK_DIMS:
            single = self.compile == "on" or self.memory != "graph"
            return min(COMPILED_CHUNK if single else CPU_CHUNK, num_tasks(episode))
        return self.chunk if isinstance(self.chunk, int) else num_tasks(episode)

    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        unroll = unroll_for(self.memory)
        notes: list[str] = []

        def summed_gradient(meta: Meta, chunk: Episode, step: Tensor) -> tuple[Meta, Aux]:
            def summed_loss(learned: Meta) -> tuple[Tensor, Aux]:
                def meta_loss(task: Episode) -> tuple[Tensor, Aux]:
                    return algo.meta_loss(net, {**learned, **buffers_only(meta)}, task, step, unroll)

                losses_T, aux_T = map_over_tasks(meta_loss, chunk)
                return losses_T.sum(), sum_over_tasks(aux_T)

            return loss_gradient(summed_loss, learned_only(meta))

        def outputs(meta: Meta, chunk: Episode) -> Tensor:
            def outputs_QN(task: Episode) -> Tensor:
                return algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll), task.query.x)

            return map_over_tasks(outputs_QN, chunk)

        fast_gradient = self._compiled(summed_gradient, notes)
        if self.cuda_graph == "on":  # never for scores: the outputs of one call must outlast the next call
            fast_gradient = Captured(fast_gradient)
        fast_outputs = self._compiled(outputs, notes)

        @torch.no_grad()
        def meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
            step_tensor = torch.full((), step, device=episode.index.device)
            size = self.chunk_size(episode)
            sums: tuple[Meta, Aux] | None = None
            for chunk in chunks(episode, size):
                gradient_of = _fast_if_whole(fast_gradient, summed_gradient, chunk, size)
                sums = accumulate(sums, gradient_of(meta, chunk, step_tensor))
            assert sums is not None, "an episode of no tasks"
            return divide_by_count(sums, num_tasks(episode))

        @torch.no_grad()
        def scores(meta: Meta, episode: Episode) -> Tensor:
            size = self.chunk_size(episode)
            found = [_fast_if_whole(fast_outputs, outputs, chunk, size)(meta, chunk) for chunk in chunks(episode, size)]
            return torch.cat(found)

        return Engine(meta_grad, scores, notes)

    def _compiled(self, function: Callable[[*Args], TensorTree], notes: list[str]) -> Callable[[*Args], TensorTree]:
        return Compiled(function, notes.append) if self.compile == "on" else function


def _fast_if_whole(
    fast: Callable[[*Args], TensorTree], eager: Callable[[*Args], TensorTree], chunk: Episode, size: int
) -> Callable[[*Args], TensorTree]:
    """A last chunk that is smaller would be compiled and captured for itself, which it does not win back."""
    return fast if num_tasks(chunk) == size else eager


def map_over_tasks(function: Callable[[Episode], TensorTree], episode: Episode) -> TensorTree:
    if num_tasks(episode) > 1:
        stacked: TensorTree = vmap(function)(episode)
        return stacked
    # Without vmap one task needs no grouped convolutions.
    return map_tensors(lambda value: value.unsqueeze(0), function(next(tasks(episode))))
