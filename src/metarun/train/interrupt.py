"""Ctrl-C and SIGTERM: the first asks the run to stop between two steps, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Raised between steps, when all that must be saved can be saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # 130 and 143, as shells have it


class Stop:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def check(self) -> None:
        if self.asked is not None:
            raise Interrupted(self.asked)

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = number


@contextmanager
def listening() -> Iterator[Stop]:
    """Signals are heard inside, and outside as before; once one came, to the end, so that a second ends at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.hear) for number in SIGNALS}
    try:
        yield stop
    finally:
        if stop.asked is None:
            for number, handler in before.items():
                signal.signal(number, handler)
