"""Everything a contender may import, imported once: the processes that measure memory are forked from one with this."""

from __future__ import annotations

import contextlib

from bench import contenders, peer_packages
from metarun.torch_setup.quiet_import import quiet_import

peer_packages.add_to_path()
for _name in ("learn2learn", "higher", "torchopt"):
    with contextlib.suppress(Exception):  # the contender will say so itself
        quiet_import(_name)
assert contenders.PEERS
