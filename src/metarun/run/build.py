"""A RunConfig into parts that work together: data, network, what is learned, engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch

from metarun.config.schema import RunConfig, check_capacities
from metarun.data.splits import SPLITS
from metarun.data.store.pool import DataError
from metarun.data.tasks import opening
from metarun.data.tasks.contracts import ClassificationData, TaskData, Tasks
from metarun.errors import ConfigError
from metarun.models.functional import assemble as assemble_net
from metarun.types import Engine, Meta, Net

DTYPE = torch.float32
OWN = 1 << 32  # keeps what an algorithm draws apart from what the net drew by the same seed


class Parts(NamedTuple):
    data: TaskData
    net: Net
    meta: Meta
    engine: Engine


def prepare(config: RunConfig, say: Callable[[str], None]) -> Parts:
    """Everything that can be wrong with a configuration shows here, before anything is written."""
    data = open_data(config, say)
    check_capacities(config, data, SPLITS)
    return assemble(config, data)


def open_data(config: RunConfig, say: Callable[[str], None]) -> TaskData:
    name = config.choices["data"]
    try:
        return opening.open_data(config.data, config.device, DTYPE, say, config.augment, name)
    except DataError as error:
        raise ConfigError(f"data={name}: {error}") from error


def assemble(config: RunConfig, data: TaskData) -> Parts:
    outputs = config.task.train.ways_range[1] if config.kind == "classes" else 1
    if config.algo.trains_on == "batches":
        outputs = cast(ClassificationData, data).num_training_classes
    try:
        net, weights = assemble_net(config.model.path, dict(config.model.values), data.item_shape, outputs, config.seed)
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


def train_tasks(config: RunConfig, data: TaskData) -> Tasks:
    if config.algo.trains_on == "batches":
        assert config.kind == "classes", f"batches of {config.kind}"
        return cast(ClassificationData, data).batches(config.task.train, config.seed)
    return data.tasks("train", config.task.train, config.seed)
