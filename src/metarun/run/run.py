"""One run from configuration to result, which can be stopped and resumed at any moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from metarun.config.device import set_tf32
from metarun.config.schema import RunConfig
from metarun.data.splits.split_file import split_text
from metarun.data.tasks.contracts import ClassificationData
from metarun.engine.launch_ranks import ranks_of_torchrun
from metarun.engine.ranks import RankGroup, Ranks
from metarun.errors import RunError
from metarun.results import plots
from metarun.run.build import Parts, prepare
from metarun.run.checkpoint import read_file
from metarun.run.directory import (
    RunDir,
    folder_in_use,
    locked,
    read_summary,
    write_or_match_config,
    write_summary,
    write_text,
)
from metarun.run.execution import NOTHING_TO_DO, Assignment, Plan, executing, plan_execution
from metarun.run.follow import follow
from metarun.run.meta_test import write_test
from metarun.run.phases import peak_mb_of_all, score_best, train
from metarun.run.session import Session
from metarun.torch_setup.allocator import keep_pages
from metarun.track.console import say, show_result
from metarun.train.finite import NonFinite
from metarun.train.interrupt import Interrupted, Stop, listening
from metarun.types import Artifacts

SHORTEST_S = 1e-9  # in place of 0, for a run of no steps


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    summary: Mapping[str, Any] | None
    exit_code: int
    lost: bool = False  # a thread of W&B hangs: only os._exit leaves the process


def execute(config: RunConfig) -> Outcome:
    """Opens or resumes the run, decides its execution, trains, tests and summarises."""
    with ranks_of_torchrun(config.device.type) as ranks:
        if isinstance(ranks, RankGroup):
            config = dataclasses.replace(config, device=ranks.device)
        if ranks.rank == 0:
            return _lead(config, ranks)
        with listening() as stop:
            exit_code = follow(config, ranks, stop)
    if exit_code == RunError.exit_code:
        raise RunError("rank 0 tells why")  # and this rank is silent
    return Outcome(None, exit_code)


def _lead(config: RunConfig, ranks: Ranks) -> Outcome:
    """On rank 0, which alone opens the run directory."""
    keep_pages(config.allocator)
    set_tf32(config.tf32)
    parts = prepare(config, say)
    with locked(folder_in_use(config)) as run:
        write_or_match_config(run, config)
        summary = read_summary(run)
        if summary is not None:
            ranks.from_first(NOTHING_TO_DO)
            say(f"{run.path}: this run is finished; its result:")
            show_result(summary, run.path)
            return Outcome(summary, 0)
        if config.kind == "classes":
            write_text(run.split, split_text(cast(ClassificationData, parts.data).class_names))
        with listening() as stop:
            try:
                plan = plan_execution(config, parts, run, stop, say)
            except Interrupted as stopped:
                ranks.from_first(NOTHING_TO_DO)
                say(f"{stopped}: before the first step; nothing was begun")
                return Outcome(None, stopped.exit_code)
            checkpoint = read_file(run.last) if run.last.exists() else None
            assignment = Assignment("train", plan.engine, plan.threads, checkpoint)
            with executing(assignment, plan.processes, config, parts, ranks) as (engine, ranks):
                return train_and_test(config, parts._replace(engine=engine), run, stop, plan, ranks)


def train_and_test(config: RunConfig, parts: Parts, run: RunDir, stop: Stop, plan: Plan, ranks: Ranks) -> Outcome:
    session = Session(config, parts, run, stop, plan, ranks)
    exit_code, summary = 1, None
    try:
        train(config, parts, session)
        for line in parts.engine.notes:
            session.console.note(f"engine.{line}")
        summary = _test(config, parts, session)
        exit_code = 0
    except Interrupted as stopped:
        exit_code = stopped.exit_code
        session.save_on_interrupt(str(stopped))
    except NonFinite as bad:
        raise RunError(_not_finite(config, run, bad)) from bad
    finally:
        session.close(exit_code)
    return Outcome(summary, exit_code, session.lost)


def _test(config: RunConfig, parts: Parts, session: Session) -> dict[str, Any]:
    """The best checkpoint on the test split, the summary, and the end of the run."""
    run, state = session.run, session.state
    assert state.best is not None, f"step {state.step} was never validated"
    best, scores = score_best(config, parts, session)
    peak_mb = peak_mb_of_all(config, session)
    with session.outside_training_time():
        tested = write_test(config, parts, best, run, scores)
    session.add_elapsed()
    curves, _ = plots.curves(run.metrics, run.curves)
    summary = {
        **tested,
        f"val/best_{session.measure.name}": state.best[0],
        "best_step": state.best[1],
        **session.outer.metrics(state),
        "time/total_s": state.total_s,
        "time/tasks_per_s": config.train.steps * config.train.meta_batch / max(state.train_s, SHORTEST_S),
        "memory/peak_mb": peak_mb,
        **session.plan.summary_metrics(),
        "protocol": session.protocol,
    }
    session.trackers.finish(summary, Artifacts(curves, run.episodes, run.scores, run.best, run.config))
    write_summary(run, summary)
    return summary


def _not_finite(config: RunConfig, run: RunDir, bad: NonFinite) -> str:
    last = f"the last good checkpoint is {run.last}" if run.last.exists() else "no checkpoint was saved before"
    first = bad.step * config.train.meta_batch
    which = f"on training tasks {first} to {first + config.train.meta_batch - 1}"
    if any(transform.skips for transform in config.train.outer):
        which += f", and skip_not_finite gives up after {bad.in_a_row} in a row"
    return (
        f"step {bad.step}: the loss or its gradient is not finite, {which}; {last}. "
        "Lower algo.inner_lr or optim.lr, or set train.outer=[{clip_by_norm: 10.0}]"
    )
