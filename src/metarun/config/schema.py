"""The typed configuration of a run, made of composed YAML. A mistake is a ConfigError."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from metarun.config.convert import TARGET, call_arguments, convert, dataclass_from, target_class, values_of
from metarun.config.device import device_of, ranks_of
from metarun.config.renamed import with_previous_names
from metarun.data.sources.mixture import Mixture
from metarun.data.sources.source import Source
from metarun.data.tasks.augment import Augment
from metarun.data.tasks.contracts import (
    ClassSampler,
    ClassSource,
    CountRange,
    FeatureSource,
    FunctionSource,
    ImageSource,
    TaskData,
    TaskShape,
    check_fit,
    check_functions,
    range_text,
    shape_name,
)
from metarun.errors import ConfigError, nearest
from metarun.torch_setup.allocator import Allocator
from metarun.torch_setup.quiet_import import quiet_import
from metarun.track.jsonl import FilesOnly
from metarun.track.wandb import WandbConfig
from metarun.train.outer import TRANSFORMS, MovingAverage, OuterTransform, check_chain
from metarun.train.schedule import Schedule
from metarun.types import Algorithm, EngineChoice, Kind, Split

# May differ between runs of one experiment.
UNSIGNED = ("seed", "device", "devices", "allocator", "execution_from", "track", "out")
TF32_OFF = ("tf32", False)  # left out of the signature, so that runs from before this key keep their directory


@dataclass(frozen=True)
class TaskConfig:
    ways: CountRange
    shots: CountRange
    queries: int
    label_noise: float
    imbalance: int
    sampler: ClassSampler
    train: TaskShape

    def __post_init__(self) -> None:
        self.test.check("")
        self.train.check("train.")

    @property
    def test(self) -> TaskShape:
        shared = (self.ways, self.shots, self.queries, self.label_noise, self.imbalance, self.sampler)
        return TaskShape(*shared, tasks=None, order="cyclic")


@dataclass(frozen=True)
class TrainConfig:
    steps: int
    meta_batch: int
    outer: tuple[OuterTransform, ...]
    log_every: int
    save_every: int

    def __post_init__(self) -> None:
        for name, value in (
            ("meta_batch", self.meta_batch),
            ("log_every", self.log_every),
            ("save_every", self.save_every),
        ):
            _at_least(1, name, value)
        _at_least(0, "steps", self.steps)
        check_chain(self.outer, self.steps)


@dataclass(frozen=True)
class EvalConfig:
    every: int
    val_episodes: int
    test_episodes: int
    tasks_at_once: int
    weights: Literal["trained", "average"]

    def __post_init__(self) -> None:
        _at_least(1, "every", self.every)
        _at_least(1, "tasks_at_once", self.tasks_at_once)
        for name, value in (("val_episodes", self.val_episodes), ("test_episodes", self.test_episodes)):
            _at_least(2, name, value, " (a confidence interval needs two)")


@dataclass(frozen=True)
class ForeignClass:
    """A class that is no dataclass of ours (an optimizer, a network), and the arguments that configure it."""

    cls: type
    values: Mapping[str, Any]

    @property
    def path(self) -> str:
        return f"{self.cls.__module__}.{self.cls.__qualname__}"


@dataclass(frozen=True)
class RunConfig:
    data: ClassSource | FunctionSource | Mixture
    augment: Augment | None
    task: TaskConfig
    algo: Algorithm[Any]
    model: ForeignClass
    optim: ForeignClass
    schedule: Schedule
    engine: EngineChoice
    train: TrainConfig
    eval: EvalConfig
    track: WandbConfig | FilesOnly
    seed: int
    device: torch.device
    devices: int | Literal["auto"]  # processes, each on one thread or one GPU
    allocator: Allocator
    tf32: bool
    execution_from: str | None  # plan.json of another run
    out: Path
    choices: Mapping[str, str]  # group -> the file chosen in it
    plain: Mapping[str, Any]  # all values as composed, for files and people

    @property
    def kind(self) -> Kind:
        return self.data.kind

    @property
    def signature(self) -> str:
        return _digest(self.signed(self.plain))

    @property
    def signature_of_previous_version(self) -> str:
        """That of the same configuration before keys were renamed."""
        return _digest(with_previous_names(self.signed(self.plain)))

    def signed(self, plain: Mapping[str, object]) -> dict[str, object]:
        """The values that the results depend on: not the device, nor the folder of the data."""
        kept = {name: value for name, value in plain.items() if name not in UNSIGNED and (name, value) != TF32_OFF}
        assert isinstance(self.data, Source), f"{type(self.data).__name__} is no Source"
        data = {name: value for name, value in values_of(kept, "data").items() if name not in self.data.places}
        content = self.data.identity()  # of the user's own files, wherever they lie
        return {**kept, "data": data if content is None else {**data, "content": content}}

    @property
    def experiment(self) -> str:
        chosen = self.choices.get("experiment")
        shape = shape_name(self.task.test) if self.kind == "classes" else f"k{self.task.shots}"
        return _file_name(chosen or f"{self.choices['data']}-{shape}")

    @property
    def group(self) -> str:
        return self._group_with(self.signature)

    @property
    def folder(self) -> Path:
        return self.out / self.group / f"seed{self.seed}"

    @property
    def folder_of_previous_version(self) -> Path:
        return self.out / self._group_with(self.signature_of_previous_version) / f"seed{self.seed}"

    def _group_with(self, signature: str) -> str:
        return f"{self.experiment}/{_file_name(self.choices['algo'])}-{signature}"


def check_config(plain: Mapping[str, object], choices: Mapping[str, str]) -> RunConfig:
    """Types and checks every value, as far as no data set is needed for it."""
    known = [field.name for field in fields(RunConfig) if field.name not in ("schedule", "choices", "plain")]
    extra = [name for name in plain if name not in known]
    if extra:
        raise ConfigError(f"{extra[0]}: unknown key (known: {', '.join(known)})")
    optim = dict(values_of(plain, "optim"))
    schedule = optim.pop("schedule", None)
    optim_class = target_class(optim, "optim")
    if not issubclass(optim_class, torch.optim.Optimizer):
        raise ConfigError(f"optim.{TARGET}={optim[TARGET]}: need a torch.optim class")
    if not isinstance(schedule, Mapping):
        raise ConfigError(
            f"optim.schedule={schedule}: is a group of values; choose a file by optim/schedule={schedule}"
        )
    device = device_of(plain.get("device"))
    config = RunConfig(
        data=_data_source(plain),
        augment=_augmentation(plain),
        task=dataclass_from(TaskConfig, plain.get("task"), "task"),
        algo=_instance(plain, "algo"),
        model=_model_class(values_of(plain, "model")),
        optim=_optimizer_class(optim_class, optim),
        schedule=cast(Schedule, dataclass_from(target_class(schedule, "optim.schedule"), schedule, "optim.schedule")),
        engine=_instance(plain, "engine"),
        train=_train_config(values_of(plain, "train")),
        eval=dataclass_from(EvalConfig, plain.get("eval"), "eval"),
        track=_instance(plain, "track"),
        seed=_checked_seed(plain.get("seed")),
        device=device,
        devices=ranks_of(plain.get("devices"), device),
        allocator=convert(plain.get("allocator"), Allocator, "allocator"),
        tf32=convert(plain.get("tf32", False), bool, "tf32"),
        execution_from=convert(plain.get("execution_from"), str | None, "execution_from"),
        out=Path(convert(plain.get("out"), str, "out")),
        choices=choices,
        plain=plain,
    )
    _check_together(config)
    return config


def check_capacities(config: RunConfig, data: TaskData, splits: Sequence[Split]) -> None:
    """ConfigError if a split cannot give tasks of the configured shape."""
    for split in splits:
        prefix, shape = ("task.train", config.task.train) if split == "train" else ("task", config.task.test)
        for capacity in data.capacities(split):
            check_fit(prefix, shape, split, capacity)


def _check_together(config: RunConfig) -> None:
    name, data = config.choices["algo"], config.choices["data"]
    if isinstance(config.devices, int) and config.train.steps and config.devices > config.train.meta_batch:
        raise ConfigError(
            f"train.meta_batch={config.train.meta_batch}: each of {config.devices} processes needs a task; raise it "
            "or use fewer processes"
        )
    if config.tf32 and config.device.type == "cpu":
        raise ConfigError(f"tf32=true: is for a GPU, and device={config.device}; set tf32=false")
    averages = any(isinstance(transform, MovingAverage) for transform in config.train.outer)
    if config.eval.weights == "average" and not averages:
        raise ConfigError(
            "eval.weights=average: train.outer averages nothing; add {moving_average: 0.999} to it, or set trained"
        )
    if config.kind not in config.algo.kinds:
        meant = " and ".join(sorted(config.algo.kinds))
        raise ConfigError(
            f"algo={name}: is meant for {meant}, data={data} has {config.kind}; choose another of the two"
        )
    if config.algo.trains_on == "nothing" and config.train.steps:
        raise ConfigError(f"train.steps={config.train.steps}: algo={name} learns nothing before the test; set it to 0")
    if config.algo.trains_on != "nothing" and not config.train.steps:
        raise ConfigError(f"train.steps=0: algo={name} has to learn; need at least 1")
    for prefix, shape in (("task", config.task.test), ("task.train", config.task.train)):
        if config.kind == "values":
            check_functions(prefix, shape, data)
        if config.algo.uses_head and not isinstance(shape.ways, int):
            raise ConfigError(
                f"{prefix}.ways={range_text(shape.ways)}: algo={name} learns a head for one number of ways; give one, "
                "or use protonet"
            )
    ways, train_ways = range_text(config.task.ways), range_text(config.task.train.ways)
    if config.algo.uses_head and ways != train_ways:
        raise ConfigError(
            f"task.train.ways={train_ways}: algo={name} learns a head for one number of ways and is tested at "
            f"task.ways={ways}; make them equal, or use protonet"
        )


def _data_source(plain: Mapping[str, object]) -> ClassSource | FunctionSource | Mixture:
    """The data source. The members of a mixture are built first."""
    spec = values_of(plain, "data")
    if target_class(spec, "data") is not Mixture:
        return _source(spec, "data")
    named = spec.get("sources")
    if not isinstance(named, Mapping):
        raise ConfigError(f"data.sources={named}: name data sets, as in data.sources=[glyphs,omniglot]")
    built: dict[str, object] = {}
    for name, member in named.items():
        key = f"data.sources.{name}"
        built[name] = source = _source(member, key)
        if source.kind != "classes":
            raise ConfigError(f"{key}: has {source.kind}; a mixture is of data sets with classes")
    return dataclass_from(Mixture, {**spec, "sources": built}, "data")


def _source(spec: object, key: str) -> ClassSource | FunctionSource:
    cls = target_class(spec, key)
    source: object = dataclass_from(cls, spec, key)
    if not isinstance(source, Source) or not isinstance(source, ImageSource | FeatureSource | FunctionSource):
        raise ConfigError(f"{key}.{TARGET}={cls.__module__}.{cls.__qualname__}: is no data source; see CONTRIBUTING.md")
    return source


def _augmentation(plain: Mapping[str, object]) -> Augment | None:
    augment = dataclass_from(Augment, values_of(plain, "augment"), "augment")
    return None if augment.changes_nothing else augment


def _instance(plain: Mapping[str, object], key: str) -> Any:
    spec = values_of(plain, key)
    return dataclass_from(target_class(spec, key), spec, key)


def _train_config(spec: Mapping[str, object]) -> TrainConfig:
    given = spec.get("outer")
    if not isinstance(given, list):
        raise ConfigError(f"train.outer={given}: need a list of transforms, such as [{{clip_by_norm: 10.0}}], or []")
    outer = tuple(_transform_of(one, f"train.outer[{place}]") for place, one in enumerate(given))
    return dataclass_from(TrainConfig, {**spec, "outer": outer}, "train")


def _transform_of(spec: object, key: str) -> OuterTransform:
    """{name: number}, {name: {field: number}}, or {_target_: a class of the user's, field: number}."""
    if isinstance(spec, Mapping) and TARGET in spec:
        cls = target_class(spec, key)
        made: object = dataclass_from(cls, spec, key) if is_dataclass(cls) else None
        if not isinstance(made, OuterTransform):
            raise ConfigError(f"{key}.{TARGET}={spec[TARGET]}: need a dataclass derived from {OuterTransform.__name__}")
        return made
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ConfigError(f"{key}={spec}: need one name and its value, such as {{clip_by_norm: 10.0}}")
    [(name, value)] = spec.items()
    if name not in TRANSFORMS:
        raise ConfigError(
            f"{key}={name}: no such transform{nearest(str(name), TRANSFORMS)} (known: {', '.join(TRANSFORMS)})"
        )
    cls = TRANSFORMS[name]
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # each is a dataclass
    single = len(names) == 1 and not isinstance(value, Mapping)
    return dataclass_from(cls, {names[0]: value} if single else value, f"{key}.{name}")


def _optimizer_class(cls: type[torch.optim.Optimizer], spec: Mapping[str, object]) -> ForeignClass:
    call = ForeignClass(cls, call_arguments(cls, spec, "optim", ("params",)))
    if "lr" not in call.values:
        raise ConfigError("optim.lr: missing; the schedule needs a rate to start from")
    try:
        cls([torch.zeros(1)], **call.values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optim: {error}") from error
    return call


def _model_class(spec: Mapping[str, object]) -> ForeignClass:
    cls = target_class(spec, "model", quiet_import)
    return ForeignClass(cls, call_arguments(cls, spec, "model", ("shape",)))


def _checked_seed(value: object) -> int:
    seed: int = convert(value, int, "seed")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}: need a whole number from 0 to 2^63 - 1")
    return seed


def _at_least(low: int, name: str, value: int, why: str = "") -> None:
    if value < low:
        raise ValueError(f"{name}={value}: need at least {low}{why}")


def _digest(signed: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()[:8]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
