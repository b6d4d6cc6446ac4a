"""The part of every rank but the first in a run: the same work as rank 0, without a file and without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypedDict

import torch

from metarun.config.device import set_tf32
from metarun.config.schema import RunConfig, check_config
from metarun.engine.ranks import RankGroup, Ranks
from metarun.run.build import prepare
from metarun.run.checkpoint import decode_checkpoint
from metarun.run.execution import Assignment, build_engine, time_steps
from metarun.run.phases import peak_mb_of_all, score_best, train
from metarun.run.session import SilentSession
from metarun.torch_setup.allocator import keep_pages
from metarun.train.finite import NonFinite
from metarun.train.interrupt import Interrupted, Stop


class ConfigValues(TypedDict):
    """A configuration as it travels to a started rank."""

    plain: Mapping[str, object]
    choices: Mapping[str, str]


def started_rank(ranks: RankGroup, order: ConfigValues) -> None:
    """The task of a rank that rank 0 has started. It hears no signals: rank 0 does."""
    config = dataclasses.replace(check_config(order["plain"], order["choices"]), device=ranks.device)
    follow(config, ranks, Stop())


def follow(config: RunConfig, ranks: Ranks, stop: Stop) -> int:
    """Does what rank 0 says. Returns the exit code."""
    keep_pages(config.allocator)
    set_tf32(config.tf32)
    parts = prepare(config, lambda _: None)
    assignment: Assignment = ranks.from_first(None)
    torch.set_num_threads(assignment.threads)
    parts = parts._replace(engine=build_engine(config, parts, assignment.engine))
    try:
        if assignment.purpose == "measure":
            time_steps(config, parts, parts.engine, ranks, stop)
        elif assignment.purpose == "train":
            session = SilentSession(config, parts, stop, ranks)
            if assignment.checkpoint is not None:
                session.state.restore(
                    decode_checkpoint(assignment.checkpoint, config.folder / "last.pt", config.device)
                )
            train(config, parts, session)
            score_best(config, parts, session)
            peak_mb_of_all(config, session)
    except Interrupted as stopped:
        return stopped.exit_code
    except NonFinite:  # rank 0 found the same, and tells the user
        return 1
    return 0
