"""Every algorithm under conf/algo, with a small network and episodes for each task kind."""

from __future__ import annotations

import importlib
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.models.functional import FunctionalNet, build
from metarun.types import Episode, Kind, Meta
from support.small import SEED, WAYS, episodes, network

CONF = Path(__file__).parents[2] / "conf" / "algo"
NETS: dict[Kind, str] = {"classes": "conv4-strided", "values": "mlp-sine"}


@cache
def values(name: str) -> dict[str, Any]:
    """As Hydra would compose the file alone: its own group, with the task that interpolations may ask for."""
    written = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(written, dict)
    shape = {"ways": WAYS, "shots": 2, "queries": 2}
    whole = OmegaConf.create({"task": {**shape, "train": shape}, "algo": written.get("algo", written)})
    plain = OmegaConf.to_container(whole.algo, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): tuple(v) if isinstance(v, list) else v for key, v in plain.items() if key != "defaults"}


def algorithm_class(name: str) -> type:
    room, _, cls = values(name)["_target_"].rpartition(".")
    found = getattr(importlib.import_module(room), cls)
    assert isinstance(found, type)
    return found


def algorithm(name: str) -> Any:
    return algorithm_class(name)(**{key: value for key, value in values(name).items() if key != "_target_"})


NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
CASES = [(name, kind) for name in NAMES for kind in NETS if kind in algorithm(name).kinds]


def prepared(name: str, kind: Kind, dtype: torch.dtype = torch.float64) -> tuple[Any, FunctionalNet, Meta, Episode]:
    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value.clone()

    algo, (shared, weights) = algorithm(name), network(NETS[kind])
    net, weights = build(deepcopy(shared.module).to(dtype))[0], {n: cast(w) for n, w in weights.items()}
    return algo, net, algo.init(net, weights, SEED), tree_map(cast, episodes(NETS[kind]))


def first(episode: Episode) -> Episode:
    task: Episode = tree_map(lambda stack: stack[0], episode)
    return task
