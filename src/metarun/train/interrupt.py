"""Ctrl-C and SIGTERM: the first asks the run to stop between two steps, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from metarun.engine.ranks import STOP_SIGNALS, Ranks
from metarun.torch_setup.torchrun import torchrun_count


class Interrupted(Exception):
    """Raised between steps, when all that must be saved can be saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # 130 and 143, as shells have it


class Stop:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def check_step(self, ranks: Ranks) -> None:
        """Between two steps: all ranks stop at the same one."""
        _interrupt(ranks.stop_after_step(self.asked))

    def check_now(self, ranks: Ranks) -> None:
        """Anywhere else; all ranks must be here at the same time."""
        _interrupt(ranks.stop_anywhere(self.asked))

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and torchrun_count() is None:  # torchrun repeats a signal, and kills after a while
            os._exit(128 + number)
        self.asked = number


def _interrupt(asked: int | None) -> None:
    if asked is not None:
        raise Interrupted(asked)


@contextmanager
def listening() -> Iterator[Stop]:
    """Signals are heard inside, and outside as before; once one came, to the end, so that a second ends at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.hear) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        if stop.asked is None:
            for number, handler in before.items():
                signal.signal(number, handler)
