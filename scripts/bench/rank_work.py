"""What the other ranks of a contender do: the same meta-step on their share of the tasks, whenever rank 0 calls."""

from __future__ import annotations

from multiprocessing.connection import Client
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from bench.workloads import WORKLOADS, Job, make_job
from metarun.engine.ranks import RankGroup
from metarun.engine.task_axis import num_tasks
from metarun.torch_setup.allocator import keep_pages
from metarun.types import Engine, Episode, Meta

STEP, END = b"step", b"end"  # what rank 0 says


class Order(NamedTuple):
    """A job in plain values."""

    address: str  # of the socket on which rank 0 says what is next: a training loop does not wait for anybody's word
    workload: str
    words: list[str]
    fields: dict[str, Any]
    tasks: int
    double: bool
    quick: bool


def work(ranks: RankGroup, values: dict[str, Any]) -> None:
    from bench.contenders import engine_of  # which imports this module

    keep_pages("auto")
    order = Order(**values)
    dtype = torch.float64 if order.double else torch.float32
    job = make_job(WORKLOADS[order.workload], torch.device("cpu"), dtype, order.tasks, order.quick)
    engine = engine_of(tuple(order.words), order.fields).build(job.algo, job.net)
    mine = share(ranks, job.episode)
    with Client(order.address) as from_first:
        while from_first.recv_bytes() == STEP:  # between two steps it takes no time from other contenders
            meta_step(ranks, engine, job, mine)


def share(ranks: RankGroup, episode: Episode) -> Episode:
    place_T = ranks.share(torch.arange(num_tasks(episode)))
    mine: Episode = tree_map(lambda value: value[place_T], episode)
    return mine


def meta_step(ranks: RankGroup, engine: Engine, job: Job, mine: Episode) -> Meta:
    grads, aux = engine.meta_grad(job.meta, mine, 0)
    return ranks.mean(grads, aux, num_tasks(mine) / job.tasks, None)[0]
