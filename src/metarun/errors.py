"""Errors that are shown to the user as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHOWN_NAMES = 3


class ConfigError(Exception):
    """A mistake in the configuration: the text names key, value and remedy. Raised before any work; exit code 2."""

    exit_code = 2


class RunError(Exception):
    """A run that cannot start or cannot go on. Exit code 1."""

    exit_code = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """The text ', did you mean X?' for the known word X that is most like `word`; empty if none is like it."""
    import difflib  # here, since `import metarun` stays light

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def first_few(names: Sequence[str]) -> str:
    """The first three names, and dots if there are more."""
    return ", ".join([*names[:SHOWN_NAMES], *(["..."] if len(names) > SHOWN_NAMES else [])])
