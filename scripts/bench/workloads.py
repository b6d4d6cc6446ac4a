"""The workloads that are timed: meta-steps of known shape, each given by overrides for metarun."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from metarun.config.compose import compose
from metarun.config.schema import RunConfig, check_config
from metarun.models.functional import FunctionalNet, build_net
from metarun.types import Algorithm, Batch, Episode, Meta

SEED = 0
NOISE = 0.05  # added to the first weights: with a head of zeros the body has no inner gradient
QUICK_TASKS, QUICK_WIDTH = 2, 8


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    item: tuple[int, ...]  # shape of one input
    overrides: tuple[str, ...]  # overrides, as on metarun's command line
    engine: tuple[str, ...] = ()  # overrides for the engines that do not decide by measuring

    @property
    def has_images(self) -> bool:
        return len(self.item) == 3


@dataclass(frozen=True)
class Job:
    """A workload on a device: all that a contender gets."""

    workload: Workload
    config: RunConfig
    algo: Algorithm[Any]
    net: FunctionalNet
    meta: Meta
    episode: Episode
    quick: bool

    @property
    def tasks(self) -> int:
        return len(self.episode.index)


def conv_words(width: int, downsample: str) -> tuple[str, ...]:
    pooling = "flatten" if downsample == "pool" else "mean"
    return ("model=conv4", f"model.width={width}", f"model.downsample={downsample}", f"model.pooling={pooling}")


def descent_words(algo: str, steps: int, lr: float) -> tuple[str, ...]:
    return (f"algo={algo}", f"algo.steps={steps}", f"algo.inner_lr={lr}", "algo.loss_reduction=mean")


def task_words(task: str, queries: int, tasks: int) -> tuple[str, ...]:
    return (f"task={task}", f"task.queries={queries}", f"train.meta_batch={tasks}")


def _sine(name: str, tasks: int, steps: int) -> Workload:
    title = f"sine, MLP 1-40-40-1, 10 points, {steps} inner step{'s' * (steps > 1)}, {tasks} tasks"
    overrides = ("data=sine", *descent_words("maml", steps, 0.01), f"train.meta_batch={tasks}")
    return Workload(name, title, (1,), overrides, ("engine.chunk=null",))  # small enough for all tasks at once


GREY, COLOUR = (1, 28, 28), (3, 84, 84)
POOLED, STRIDED, COLOURED = conv_words(64, "pool"), conv_words(64, "stride"), conv_words(32, "pool")
ONE_SHOT = task_words("5w1s", 1, 32)
REPTILE = ("algo=reptile", "algo.steps=5", "algo.inner_lr=0.001", "algo.inner_batch=10", "algo.inner_optim=adam")
W1 = "28x28, conv4-64 with max-pool, 5w1s, 1 query"
W3 = "84x84x3, conv4-32 with max-pool, 15 queries"
W5 = "28x28, four strided convolutions of 64"
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W1", f"MAML: {W1}, 1 inner step, 32 tasks", GREY,
                 (*descent_words("maml", 1, 0.4), *POOLED, *ONE_SHOT)),
        Workload("W1-q15", "MAML: as W1 with 15 queries", GREY,
                 (*descent_words("maml", 1, 0.4), *POOLED, *task_words("5w1s", 15, 32))),
        Workload("W1-fomaml", "first-order MAML: as W1", GREY,
                 (*descent_words("fomaml", 1, 0.4), *POOLED, *ONE_SHOT)),
        Workload("W1-metasgd", "Meta-SGD: as W1", GREY, (*descent_words("metasgd", 1, 0.4), *POOLED, *ONE_SHOT)),
        Workload("W1-protonet", "ProtoNet: as W1", GREY, ("algo=protonet", *POOLED, *ONE_SHOT)),
        Workload("W2", "MAML: as W1 with 20w1s, 5 inner steps, 16 tasks", GREY,
                 (*descent_words("maml", 5, 0.1), *POOLED, *task_words("20w1s", 1, 16))),
        Workload("W3", f"MAML: {W3}, 5w1s, 5 inner steps, 4 tasks", COLOUR,
                 (*descent_words("maml", 5, 0.01), *COLOURED, *task_words("5w1s", 15, 4))),
        Workload("W3-5shot", "MAML: as W3 with 5w5s", COLOUR,
                 (*descent_words("maml", 5, 0.01), *COLOURED, *task_words("5w5s", 15, 4))),
        Workload("W3-anil", "ANIL: as W3", COLOUR,
                 (*descent_words("anil", 5, 0.01), *COLOURED, *task_words("5w1s", 15, 4))),
        Workload("W3-10steps", "MAML: as W3 with 10 inner steps", COLOUR,
                 (*descent_words("maml", 10, 0.01), *COLOURED, *task_words("5w1s", 15, 4))),
        _sine("W4-1step", 25, 1),
        _sine("W4-5steps", 25, 5),
        _sine("W4-128tasks", 128, 5),
        Workload("W5", f"MAML: {W5}, 5w1s, 1 query, 1 inner step, 32 tasks", GREY,
                 (*descent_words("maml", 1, 0.4), *STRIDED, *ONE_SHOT)),
        Workload("W5-20way", "MAML: as W5 with 20w1s, 5 inner steps, 16 tasks", GREY,
                 (*descent_words("maml", 5, 0.1), *STRIDED, *task_words("20w1s", 1, 16))),
        Workload("W5-reptile", "Reptile: W5's net, 5w5s, 5 queries, 5 steps of Adam on batches of 10, 32 tasks",
                 GREY, (*REPTILE, *STRIDED, *task_words("5w5s", 5, 32))),
    )
}  # fmt: skip


def select_workloads(wanted: list[str]) -> list[Workload]:
    """By full name (W4-1step), or all whose name before the dash is given (W4)."""
    known = {*WORKLOADS, *(name.partition("-")[0] for name in WORKLOADS)}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: no such workload ({', '.join(WORKLOADS)})")
    kinds = {word for word in wanted if word not in WORKLOADS}
    return [w for w in WORKLOADS.values() if not wanted or w.name in wanted or w.name.partition("-")[0] in kinds]


@cache
def load_config(overrides: tuple[str, ...]) -> RunConfig:
    composed = compose([*overrides, "track=local", "device=cpu"])
    return check_config(composed.plain, composed.choices)


def make_job(
    workload: Workload, device: torch.device, dtype: torch.dtype, tasks: int | None, quick: bool = False
) -> Job:
    """`tasks`: None for the workload's own number. `quick`: a narrow network and few tasks."""
    narrow = (f"model.width={QUICK_WIDTH}",) if quick and workload.has_images else ()
    config = load_config((*workload.overrides, *narrow))
    outputs = config.task.train.ways_range[1] if workload.has_images else 1
    values: dict[str, Any] = dict(config.model.values)
    net, weights = build_net(config.model.path, values, workload.item, outputs, SEED)
    net.module.to(device=device, dtype=dtype)
    dice = torch.Generator().manual_seed(SEED + 1)
    noisy = {name: w + NOISE * torch.randn(w.shape, generator=dice) for name, w in weights.items()}
    meta = config.algo.init(net, noisy, SEED)
    meta = {group: {n: v.to(device=device, dtype=dtype) for n, v in params.items()} for group, params in meta.items()}
    count = tasks or config.train.meta_batch
    if quick and workload.has_images:
        count = min(count, QUICK_TASKS)
    return Job(workload, config, config.algo, net, meta, random_episode(workload, config, device, dtype, count), quick)


def random_episode(
    workload: Workload, config: RunConfig, device: torch.device, dtype: torch.dtype, tasks: int
) -> Episode:
    """Random images, or points on sine curves; drawn in float32, so that float64 gets the same values."""
    shape, dice = config.task.train, torch.Generator().manual_seed(SEED + 2)
    ways, shots = shape.ways_range[1], shape.shots_range[1]
    amplitude, phase = (torch.rand(tasks, 1, 1, generator=dice) for _ in range(2))

    def batch(each: int) -> Batch:
        if workload.has_images:
            x = torch.randn(tasks, ways * each, *workload.item, generator=dice)
            y = torch.arange(ways).repeat_interleave(each).repeat(tasks, 1)
            return Batch(x.to(device=device, dtype=dtype), y.to(device))
        x = 10 * torch.rand(tasks, each, 1, generator=dice) - 5
        y = (0.1 + 4.9 * amplitude) * torch.sin(x - 3 * phase)
        return Batch(x.to(device=device, dtype=dtype), y.to(device=device, dtype=dtype))

    return Episode(batch(shots), batch(shape.queries), torch.arange(tasks, device=device))
