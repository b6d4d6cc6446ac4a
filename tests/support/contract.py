"""Every algorithm under conf/algo, with a small network and episodes for each task kind."""

from __future__ import annotations

import importlib
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.config.places import conf_dir, groups
from metarun.models.functional import FunctionalNet, functional_net
from metarun.types import Episode, Kind, Meta
from support.small import SEED, WAYS, episodes, network

NETS: dict[Kind, str] = {"classes": "conv4-strided", "values": "mlp-sine"}


def merged(name: str) -> DictConfig:
    """One file on top of those that its defaults list names: what Hydra composes, in a hundredth of the time."""
    own = OmegaConf.load(conf_dir() / "algo" / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    whole = OmegaConf.merge(*(merged(base) for base in bases), own)
    assert isinstance(whole, DictConfig)
    return whole


@cache
def values(name: str) -> dict[str, Any]:
    """The values of one algorithm, without what tuned files say of it, for tasks of two shots."""
    shape = {"ways": WAYS, "shots": 2, "queries": 2}
    config = OmegaConf.create({"task": {**shape, "train": shape}, "algo": merged(name)})
    plain = OmegaConf.to_container(config.algo, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def algorithm_class(name: str) -> type:
    room, _, cls = values(name)["_target_"].rpartition(".")
    found = getattr(importlib.import_module(room), cls)
    assert isinstance(found, type)
    return found


def algorithm(name: str) -> Any:
    return algorithm_class(name)(**{key: value for key, value in values(name).items() if key != "_target_"})


NAMES = groups()["algo"]
CASES = [(name, kind) for name in NAMES for kind in NETS if kind in algorithm(name).kinds]


def prepared(name: str, kind: Kind, dtype: torch.dtype = torch.float64) -> tuple[Any, FunctionalNet, Meta, Episode]:
    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value.clone()

    algo, (shared, weights) = algorithm(name), network(NETS[kind])
    net, weights = functional_net(deepcopy(shared.module).to(dtype))[0], {n: cast(w) for n, w in weights.items()}
    return algo, net, algo.init(net, weights, SEED), tree_map(cast, episodes(NETS[kind]))


def first(episode: Episode) -> Episode:
    task: Episode = tree_map(lambda stack: stack[0], episode)
    return task
