"""Whether a split can hold the tasks asked of it."""

from __future__ import annotations

from metarun.data.tasks.contracts import Room, TaskShape, shown
from metarun.errors import ConfigError
from metarun.types import Split


def check_fit(prefix: str, shape: TaskShape, split: Split, room: Room) -> None:
    """`prefix`: where the shape stands in the configuration."""
    if room.classes is not None:
        _check_ways(prefix, shape, split, room, room.classes)
    if room.items is not None and shape.items_needed > room.items:
        less = f", {prefix}.imbalance={shape.imbalance}" if shape.imbalance else ""
        raise ConfigError(
            f"{prefix}.shots={shown(shape.shots)}, {prefix}.queries={shape.queries}{less}: class {room.smallest} of "
            f"the {split} split has {room.items} items; use shots + queries <= {room.items - shape.imbalance}"
        )


def _check_ways(prefix: str, shape: TaskShape, split: Split, room: Room, classes: int) -> None:
    (least, most), ways = shape.ways_span, f"{prefix}.ways={shown(shape.ways)}"
    if most > classes:
        raise ConfigError(f"{ways}: the {split} split has {classes} classes; use at most {classes}")
    largest, smallest = max(room.groups), min(room.groups)
    if shape.sampler == "within_group" and most > largest:
        raise ConfigError(
            f"{ways}, {prefix}.sampler=within_group: the largest group of the {split} split has {largest} classes; "
            f"use at most {largest}"
        )
    if shape.sampler == "group_as_task" and not (least <= smallest and largest <= most):
        needed = f"{smallest}" if smallest == largest else f"[{smallest},{largest}]"
        raise ConfigError(
            f"{ways}, {prefix}.sampler=group_as_task: a task takes all classes of a group, and the groups of the "
            f"{split} split have {smallest} to {largest}; set {prefix}.ways={needed}"
        )


def check_plain(prefix: str, shape: TaskShape, data: str) -> None:
    """Tasks of functions have neither classes nor labels."""
    for name in ("ways", "shots"):
        if not isinstance(getattr(shape, name), int):
            raise ConfigError(
                f"{prefix}.{name}={shown(getattr(shape, name))}: data={data} has tasks of one shape; give one"
            )
    if shape.label_noise:
        raise ConfigError(f"{prefix}.label_noise={shape.label_noise}: data={data} has no labels; set it to 0.0")
    for name, plain in (("imbalance", 0), ("sampler", "uniform"), ("tasks", None)):
        if getattr(shape, name) != plain:
            told = "null" if plain is None else plain
            raise ConfigError(f"{prefix}.{name}={getattr(shape, name)}: data={data} has no classes; set it to {told}")
