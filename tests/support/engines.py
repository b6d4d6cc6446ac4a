"""The vmap engine for tests: eager, with stored graphs, unless told otherwise."""

from __future__ import annotations

from typing import Literal

from metarun.engine.unroll import UnrollMemory
from metarun.engine.vmap import Vmap


def vmap_engine(
    chunk: int | Literal["auto"] | None,
    memory: UnrollMemory = "graph",
    compile: Literal["auto", "on", "off"] = "off",
    cuda_graph: Literal["on", "off"] = "off",
) -> Vmap:
    return Vmap(chunk, memory, compile, cuda_graph)
