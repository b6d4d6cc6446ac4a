"""One sitting at a run: its state, clocks, trackers and checkpoints, from opening to leaving."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun.config.schema import RunConfig
from metarun.measures import Estimate, primary_measure
from metarun.run.build import Parts
from metarun.run.checkpoint import read, restore, save
from metarun.run.directory import RunDir, protocol, run_id
from metarun.run.execution import Plan
from metarun.track import Trackers
from metarun.track.console import Console
from metarun.track.jsonl import Jsonl
from metarun.track.wandb import Identity, Wandb, WandbConfig
from metarun.train.interrupt import Stop
from metarun.train.loop import NonFinite, Outer, Watch
from metarun.train.state import State, learned
from metarun.types import Meta


def optimizer(config: RunConfig, parameters: list[Tensor]) -> Optimizer:
    """One that can be captured as a CUDA graph where the engine's step is, if torch has one of its kind."""
    optim = config.optim
    on = getattr(config.engine, "cuda_graph", "off") == "on" and config.device.type == "cuda"
    values = dict(optim.values)
    if on and "capturable" in inspect.signature(optim.cls).parameters:
        values.update(lr=torch.tensor(values["lr"], device=parameters[0].device), capturable=True)
    made: Optimizer = optim.cls(parameters, **values)
    return made


class Session:
    def __init__(self, config: RunConfig, parts: Parts, run: RunDir, stop: Stop, plan: Plan) -> None:
        self.config, self.run, self.stop, self.plan = config, run, stop, plan
        self.protocol = {**protocol(config), "execution": plan.brief()}
        self._known = {"config": dict(config.plain), "choices": dict(config.choices), "protocol": self.protocol}
        self.measure = primary_measure(config.kind)
        self.watch = Watch(config.train.meta_batch)
        train, rate = config.train, config.optim.values["lr"]
        self.state = State(parts.meta, optimizer(config, learned(parts.meta)))
        self.outer = Outer(config.schedule, rate, train.steps, train.clip, train.clip_by).captured(self.state)
        self.jsonl = Jsonl(run.metrics, self._resume())
        self.console = Console(
            f"{config.group}/seed{config.seed}", train.steps, self.state.step, self.measure, best=self.state.best
        )
        self.wandb = self._wandb()
        self.trackers = Trackers((self.jsonl, self.console, *((self.wandb,) if self.wandb else ())))
        self._saved_step = self.state.step if run.last.exists() else -1
        if not run.last.exists():
            self.state.total_s = plan.why.get("planning_s", 0.0)
        self._since, self._untimed_s = time.monotonic(), 0.0
        self._first_step, self._steps_s = self.state.step, 0.0
        if self.state.step:
            self.console.note(f"{run.path}: goes on from step {self.state.step} of {train.steps}")

    def _resume(self) -> int:
        """Fills the state from the last checkpoint; how much of the metrics file belongs to it."""
        if not self.run.last.exists():
            return 0
        content = read(self.run.last, self.config.device)
        restore(self.state, content)
        return int(content["about"]["metrics_bytes"])

    def _wandb(self) -> Wandb | None:
        config, choices = self.config, self.config.choices
        if not isinstance(config.track, WandbConfig):
            return None
        tags = (choices["algo"], choices["data"], choices["model"], choices["task"])
        identity = Identity(run_id(self.run), f"{config.group}/seed{config.seed}", config.group, tags)
        return Wandb(config.track, identity, self.run.path, config.plain, self.console.note)

    @property
    def lost(self) -> bool:
        return self.wandb is not None and self.wandb.lost

    def validated(self, state: State, score: Estimate) -> None:
        assert score.ci95 is not None, f"{self.measure.name} has no interval"
        self.trackers.log(state.step, {f"val/{self.measure.name}": score.value, "val/ci95": score.ci95})

    def stepped(self, state: State, metrics: dict[str, float]) -> None:
        self.settle()
        done = (state.step - self._first_step) * self.config.train.meta_batch
        times = {"time/total_s": state.total_s, "time/tasks_per_s": done / self._steps_s}
        self.trackers.log(state.step, {**metrics, "train/lr": self.outer.rate(state.step - 1), **times})

    def best(self, state: State) -> None:
        with self.apart():
            save(self.run.best, state, self._about())

    def save(self, state: State) -> None:
        self.settle()
        with self.apart():
            save(self.run.last, state, self._about())
        self._saved_step = state.step

    def _about(self) -> Mapping[str, Any]:
        return {**self._known, "metrics_bytes": self.jsonl.position()}

    def settle(self) -> None:
        """The time since the last call goes into the state."""
        now = time.monotonic()
        self.state.total_s += now - self._since
        self.state.train_s += now - self._since - self._untimed_s
        self._steps_s += now - self._since - self._untimed_s
        self._since, self._untimed_s = now, 0.0

    def untimed(self, validate: Callable[[Meta], Estimate]) -> Callable[[State], Estimate]:
        """Validation that does not count as training."""

        def timed(state: State) -> Estimate:
            with self.apart():
                return validate(state.meta)

        return timed

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Time that is the run's but not training's."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._untimed_s += time.monotonic() - start

    def ticker(self, phase: str, total: int) -> Callable[[int], None]:
        """What an evaluation calls between batches: shows how far it is, and ends it when somebody asked to stop."""

        def tick(done: int) -> None:
            self.console.tick(phase, done, total)
            self.stop.check()

        return tick

    def leave(self, why: str) -> None:
        """Stopped between two steps: nothing done so far is lost."""
        try:
            self.watch.check(self.state.step)
            if self.state.step != self._saved_step:
                self.save(self.state)
        except NonFinite:
            self.console.note(f"{why}: the loss is not finite, so nothing was saved after step {self._saved_step}")
            return
        self.console.note(
            f"{why}: saved at step {self.state.step}. The same command goes on from there: {self.run.path}"
        )

    def close(self, exit_code: int) -> None:
        self.trackers.close(exit_code)
