"""Where a run's numbers and pictures go: several trackers that act as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.types import Artifacts, Tracker


class Trackers(tuple["Tracker", ...]):
    """Trackers called in turn, itself a Tracker."""

    __slots__ = ()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self:
            tracker.log(step, metrics)

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        for tracker in self:
            tracker.finish(summary, artifacts)

    def close(self, exit_code: int) -> None:
        with ExitStack() as stack:  # each is closed, whatever another raises
            for tracker in reversed(self):
                stack.callback(tracker.close, exit_code)
