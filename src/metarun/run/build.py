"""The parts of a run from its configuration: data, network, what is learned, engine, optimizer and outer step."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun.config.schema import RunConfig, check_capacities
from metarun.data.splits import SPLITS
from metarun.data.store.pool import DataError
from metarun.data.tasks import opening
from metarun.data.tasks.contracts import ClassificationData, TaskData, Tasks
from metarun.engine.compile.cuda_graph import Captured
from metarun.engine.vmap import Vmap
from metarun.errors import ConfigError
from metarun.models.functional import FunctionalNet, build_net
from metarun.train.outer import OuterStep, Update, as_launched, init_memories
from metarun.train.state import State, learned
from metarun.types import Engine, Meta, Net, Params

DTYPE = torch.float32
ALGO_SEED_OFFSET = 1 << 32  # keeps what an algorithm draws apart from what the net drew by the same seed


class Parts(NamedTuple):
    """What a run works with."""

    data: TaskData
    net: Net
    meta: Meta
    engine: Engine


def prepare(config: RunConfig, say: Callable[[str], None]) -> Parts:
    """Every mistake in a configuration shows here, before anything is written."""
    data = open_data(config, say)
    check_capacities(config, data, SPLITS)
    return build_parts(config, data)


def open_data(config: RunConfig, say: Callable[[str], None]) -> TaskData:
    name = config.choices["data"]
    try:
        return opening.open_source(config.data, config.device, DTYPE, say, config.augment, name)
    except DataError as error:
        raise ConfigError(f"data={name}: {error}") from error


def build_parts(config: RunConfig, data: TaskData) -> Parts:
    outputs = config.task.train.ways_range[1] if config.kind == "classes" else 1
    if config.algo.trains_on == "batches":
        outputs = cast(ClassificationData, data).num_training_classes
    net, weights = configured_net(config, data.item_shape, outputs)
    try:
        meta = config.algo.init(net, weights, config.seed + ALGO_SEED_OFFSET)
    except ValueError as error:
        raise ConfigError(f"algo.{error}") from error
    meta = {group: {name: v.to(config.device) for name, v in params.items()} for group, params in meta.items()}
    try:
        engine: Engine = config.engine.build(config.algo, net)
    except ValueError as error:
        raise ConfigError(f"engine={config.choices['engine']}: {error}") from error
    return Parts(data, net, meta, engine)


def configured_net(config: RunConfig, item_shape: tuple[int, ...], outputs: int) -> tuple[FunctionalNet, Params]:
    """The network on the run's device, and its first weights."""
    try:
        net, weights = build_net(config.model.path, dict(config.model.values), item_shape, outputs, config.seed)
    except ValueError as error:
        raise ConfigError(f"model={config.choices['model']}: {error}") from error
    net.module.to(config.device)
    return net, weights


def train_tasks(config: RunConfig, data: TaskData) -> Tasks:
    if config.algo.trains_on == "batches":
        assert config.kind == "classes", f"batches of {config.kind}"
        return cast(ClassificationData, data).batches(config.task.train, config.seed)
    return data.tasks("train", config.task.train, config.seed)


def new_state(config: RunConfig, meta: Meta) -> State:
    """The state before the first step."""
    parameters = learned(meta)
    return State(meta, build_optimizer(config, parameters), init_memories(config.train.outer, parameters))


def build_optimizer(config: RunConfig, parameters: list[Tensor]) -> Optimizer:
    """On a GPU, its whole state lies there if a CUDA graph or a skipped step needs that and torch has such a kind."""
    optim = config.optim
    values = dict(optim.values)
    skips = config.device.type == "cuda" and any(transform.skips for transform in config.train.outer)
    if (_captures(config) or skips) and _capturable(optim.cls):
        warnings.filterwarnings("ignore", message=".*capturable=True.*")  # torch: meant for CUDA graphs alone
        values.update(lr=torch.tensor(values["lr"], device=parameters[0].device), capturable=True)
    made: Optimizer = optim.cls(parameters, **values)
    return made


def build_outer_step(config: RunConfig) -> OuterStep:
    """The outer step, captured as a CUDA graph where the engine's step is and the optimizer allows it."""
    capture: Callable[[Update], Update] = as_launched
    if _captures(config) and _capturable(config.optim.cls):
        capture = _captured_in_place
    rate, train = config.optim.values["lr"], config.train
    return OuterStep(config.schedule, rate, train.steps, train.outer, capture)


def _captured_in_place(update: Update) -> Update:
    return Captured(update, in_place=True)


def _captures(config: RunConfig) -> bool:
    return isinstance(config.engine, Vmap) and config.engine.cuda_graph == "on" and config.device.type == "cuda"


def _capturable(optimizer: type[Optimizer]) -> bool:
    return "capturable" in inspect.signature(optimizer).parameters
