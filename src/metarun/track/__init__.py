"""Trackers store and show a run's metrics, summary and pictures; Trackers calls several of them as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metarun.types import Artifacts, Tracker


class Trackers(tuple["Tracker", ...]):
    """A Tracker that passes every call on to each of its trackers, in order."""

    __slots__ = ()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self:
            tracker.log(step, metrics)

    def finish(self, summary: Mapping[str, object], artifacts: Artifacts) -> None:
        for tracker in self:
            tracker.finish(summary, artifacts)

    def close(self, exit_code: int) -> None:
        with ExitStack() as stack:  # so that each is closed even if another raises
            for tracker in reversed(self):
                stack.callback(tracker.close, exit_code)
