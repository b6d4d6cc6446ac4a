"""Everything a contender may import, imported once: the processes that measure memory are forked from one with this."""

from __future__ import annotations

import contextlib

from bench import contenders, environment
from metarun.torch_setup.quiet_import import quiet_import

environment.offer()
for _name in ("learn2learn", "higher", "torchopt"):
    with contextlib.suppress(Exception):  # the contender will say so itself
        quiet_import(_name)
assert contenders.PEERS
