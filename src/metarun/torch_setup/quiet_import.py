"""Imports a module without what it prints or warns of."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from types import ModuleType


def quiet_import(name: str) -> ModuleType:
    """The module `name`. learn2learn imports gym, which prints a notice that does not concern a user of metarun."""
    if name in sys.modules:
        return sys.modules[name]
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as void, warnings.catch_warnings(), contextlib.redirect_stderr(void):
        warnings.simplefilter("ignore")
        os.dup2(void.fileno(), 2)
        try:
            return importlib.import_module(name)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
