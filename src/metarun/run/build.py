"""A RunConfig into parts that work together: data, network, what is learned, engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch

from metarun.config.schema import RunConfig, check_room
from metarun.data.sources.mixture import Mixture
from metarun.data.splits import SPLITS
from metarun.data.store.pool import DataError
from metarun.data.tasks.contracts import Classes, Data, Tasks
from metarun.data.tasks.labelled import open_classes
from metarun.data.tasks.mixture import open_mixture
from metarun.errors import ConfigError
from metarun.models.functional import assemble as assemble_net
from metarun.types import Engine, Meta, Net

DTYPE = torch.float32
OWN = 1 << 32  # keeps what an algorithm draws apart from what the net drew by the same seed


class Parts(NamedTuple):
    data: Data
    net: Net
    meta: Meta
    engine: Engine


def prepare(config: RunConfig, say: Callable[[str], None]) -> Parts:
    """Everything that can be wrong with a configuration shows here, before anything is written."""
    data = open_data(config, say)
    check_room(config, data, SPLITS)
    return assemble(config, data)


def open_data(config: RunConfig, say: Callable[[str], None]) -> Data:
    try:
        if config.kind == "values":
            data: Data = config.data.open(config.device, DTYPE)  # type: ignore[union-attr]  # kind tells the sources apart
        else:
            data = open_labelled(config, say)
    except DataError as error:
        raise ConfigError(f"data={config.choices['data']}: {error}") from error
    return data


def open_labelled(config: RunConfig, say: Callable[[str], None]) -> Classes:
    source, device, augment = config.data, config.device, config.augment
    if isinstance(source, Mixture):
        return open_mixture(source, device, DTYPE, say, augment)
    return open_classes(source, device, DTYPE, say, augment, config.choices["data"])  # type: ignore[arg-type]  # as above


def assemble(config: RunConfig, data: Data) -> Parts:
    outputs = config.task.train.ways_span[1] if config.kind == "classes" else 1
    if config.algo.trains_on == "batches":
        outputs = cast(Classes, data).training_classes
    try:
        net, weights = assemble_net(config.model.path, dict(config.model.values), data.item, outputs, config.seed)
    except ValueError as error:
        raise ConfigError(f"model={config.choices['model']}: {error}") from error
    net.module.to(config.device)
    try:
        meta = config.algo.init(net, weights, config.seed + OWN)
    except ValueError as error:
        raise ConfigError(f"algo.{error}") from error
    meta = {group: {name: v.to(config.device) for name, v in params.items()} for group, params in meta.items()}
    try:
        engine: Engine = config.engine.build(config.algo, net)
    except ValueError as error:
        raise ConfigError(f"engine={config.choices['engine']}: {error}") from error
    return Parts(data, net, meta, engine)


def train_tasks(config: RunConfig, data: Data) -> Tasks:
    if config.algo.trains_on == "batches":
        assert config.kind == "classes", f"batches of {config.kind}"
        return cast(Classes, data).batches(config.task.train, config.seed)
    return data.tasks("train", config.task.train, config.seed)
