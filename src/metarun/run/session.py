"""One sitting at a run, from opening its directory to leaving it: state, clocks, trackers and checkpoints.

Rank 0 has a Session. The other ranks have a SilentSession: the same state, and nothing to write.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from metarun.config.schema import RunConfig
from metarun.engine.ranks import Ranks
from metarun.measures import Estimate, primary_measure
from metarun.run.build import Parts, build_outer_step, new_state
from metarun.run.checkpoint import read_checkpoint, read_file, save_checkpoint
from metarun.run.directory import RunDir, run_id
from metarun.run.execution import Plan
from metarun.run.item_format import item_format_of
from metarun.run.provenance import protocol
from metarun.track import Trackers
from metarun.track.console import Console
from metarun.track.jsonl import Jsonl
from metarun.track.wandb import Identity, Wandb, WandbConfig
from metarun.train.finite import NonFinite
from metarun.train.interrupt import Stop
from metarun.train.state import State
from metarun.types import Meta


class SilentSession:
    """The loop's Recorder on a rank that writes nothing."""

    def __init__(self, config: RunConfig, parts: Parts, stop: Stop, ranks: Ranks) -> None:
        self.config, self.stop, self.ranks = config, stop, ranks
        self.measure = primary_measure(config.kind)
        self.state = new_state(config, parts.meta)
        self.outer = build_outer_step(config)

    def evaluated(self, state: State) -> Meta:
        """The weights that are validated, kept as the best, and tested."""
        return self.outer.averaged(state) if self.config.eval.weights == "average" else state.meta

    def best_file(self) -> bytes | None:
        """The content of best.pt, which rank 0 has."""
        return None

    def validated(self, state: State, score: Estimate) -> None:
        """Nothing to write."""

    def best(self, state: State) -> None:
        """Nothing to write."""

    def save(self, state: State) -> None:
        """Nothing to write."""

    def stepped(self, state: State, metrics: dict[str, float]) -> None:
        """Nothing to write."""

    @contextmanager
    def outside_training_time(self) -> Iterator[None]:
        """Context manager: the time inside counts for the run, not for training. This rank takes no times."""
        yield

    def ticker(self, phase: str, total: int) -> Callable[[int], None]:
        """A function for an evaluation to call between batches: it stops all ranks when one was asked to."""

        def tick(_done: int) -> None:
            self.stop.check_now(self.ranks)

        return tick


class Session(SilentSession):
    """The loop's Recorder on rank 0."""

    def __init__(self, config: RunConfig, parts: Parts, run: RunDir, stop: Stop, plan: Plan, ranks: Ranks) -> None:
        super().__init__(config, parts, stop, ranks)
        self.run, self.plan = run, plan
        self.protocol = {**protocol(config), "execution": plan.numerics()}
        self._known = {"config": dict(config.plain), "choices": dict(config.choices), "protocol": self.protocol}
        self._known["item"] = item_format_of(parts.data).saved()
        self.jsonl = Jsonl(run.metrics, self._resume())
        title, steps = f"{config.group}/seed{config.seed}", config.train.steps
        self.console = Console(title, steps, self.state.step, self.measure, best=self.state.best)
        self.wandb = self._wandb()
        self.trackers = Trackers((self.jsonl, self.console, *((self.wandb,) if self.wandb else ())))
        self._saved_step = self.state.step if run.last.exists() else -1
        if not run.last.exists():
            self.state.total_s = plan.why.get("planning_s", 0.0)
        self._since, self._untimed_s = time.monotonic(), 0.0
        self._first_step, self._steps_s = self.state.step, 0.0
        if self.state.step:
            self.console.note(f"{run.path}: goes on from step {self.state.step} of {steps}")

    def _resume(self) -> int:
        """Fills the state from the last checkpoint. Returns how many bytes of the metrics file belong to it."""
        if not self.run.last.exists():
            return 0
        content = read_checkpoint(self.run.last, self.config.device)
        self.state.restore(content)
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
        """Whether a thread of W&B hangs."""
        return self.wandb is not None and self.wandb.lost

    def best_file(self) -> bytes:
        return read_file(self.run.best)

    def validated(self, state: State, score: Estimate) -> None:
        assert score.ci95 is not None, f"{self.measure.name} has no interval"
        self.trackers.log(state.step, {f"val/{self.measure.name}": score.value, "val/ci95": score.ci95})

    def stepped(self, state: State, metrics: dict[str, float]) -> None:
        self.add_elapsed()
        done = (state.step - self._first_step) * self.config.train.meta_batch
        times = {"time/total_s": state.total_s, "time/tasks_per_s": done / self._steps_s}
        self.trackers.log(state.step, {**metrics, "train/lr": self.outer.rate(state.step - 1), **times})

    def best(self, state: State) -> None:
        """best.pt holds the weights that were validated."""
        with self.outside_training_time():
            save_checkpoint(self.run.best, dataclasses.replace(state, meta=self.evaluated(state)), self._about())

    def save(self, state: State) -> None:
        self.add_elapsed()
        with self.outside_training_time():
            save_checkpoint(self.run.last, state, self._about())
        self._saved_step = state.step

    def _about(self) -> dict[str, object]:
        return {**self._known, "metrics_bytes": self.jsonl.position()}

    def add_elapsed(self) -> None:
        """Adds the time since the last call to the state."""
        now = time.monotonic()
        self.state.total_s += now - self._since
        self.state.train_s += now - self._since - self._untimed_s
        self._steps_s += now - self._since - self._untimed_s
        self._since, self._untimed_s = now, 0.0

    @contextmanager
    def outside_training_time(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._untimed_s += time.monotonic() - start

    def ticker(self, phase: str, total: int) -> Callable[[int], None]:
        """It shows the progress too."""
        check = super().ticker(phase, total)

        def tick(done: int) -> None:
            self.console.tick(phase, done, total)
            check(done)

        return tick

    def save_on_interrupt(self, why: str) -> None:
        """Saves a run that is stopped between two steps, so that nothing done so far is lost."""
        try:
            self.outer.check(self.state)
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
