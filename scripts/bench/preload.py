"""Imports every library that a contender needs. peak_memory.py forks its measuring processes from a process that has
imported this module, so that each one starts at once."""

from __future__ import annotations

import contextlib

from bench import contenders, peer_packages
from metarun.torch_setup.quiet_import import quiet_import

peer_packages.add_to_path()
for _name in ("learn2learn", "higher", "torchopt"):
    with contextlib.suppress(Exception):  # the contender reports this itself
        quiet_import(_name)
assert contenders.PEERS
