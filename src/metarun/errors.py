"""What a user is told in one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """A mistake in what was asked for: key, value, remedy. Exit code 2, before any work."""

    exit_code = 2


class RunError(Exception):
    """A run that cannot go on, or that may not start now. Exit code 1."""

    exit_code = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean X?' or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""
