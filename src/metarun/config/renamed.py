"""Renamed keys, values, choices and classes: an old name still works for one release, and old runs stay readable."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metarun.config.convert import TARGET, target_class
from metarun.errors import ConfigError


class RenamedKey(NamedTuple):
    old: str
    new: str
    values: Mapping[str, str] = {}  # old value -> new value; other values stay


KEYS = (
    RenamedKey("algo.order", "algo.derivatives"),
    RenamedKey("algo.split", "algo.outer_loss_on", {"train_val": "query", "train_train": "support"}),
    RenamedKey("algo.multi_step", "algo.multi_step_loss_until"),
    RenamedKey("algo.lam", "algo.proximal"),
    RenamedKey("algo.test_lam", "algo.test_proximal"),
    RenamedKey("data.copies", "data.duplicates", {"say": "warn"}),
    RenamedKey("eval.batch", "eval.tasks_at_once"),
    RenamedKey("plan", "execution_from"),
)
CHOICES = {  # (group, old file) -> new file
    ("optim", "adam_short"): "adam_1000_steps",
    ("engine", "l2l"): "learn2learn",
}
CLASSES = {  # what `_target_` says
    "metarun.schedule.Constant": "metarun.train.schedule.Constant",
    "metarun.schedule.Cosine": "metarun.train.schedule.Cosine",
    "metarun.schedule.Linear": "metarun.train.schedule.Linear",
    "metarun.schedule.Step": "metarun.train.schedule.Step",
    "metarun.data.mixture.Mixture": "metarun.data.sources.mixture.Mixture",
    "metarun.engine.l2l.L2L": "metarun.engine.learn2learn.Learn2Learn",
}
CLIP, CLIP_BY, OUTER = "clip", "clip_by", "outer"  # of train: the first two became a transform in the third
OLD_KEYS = {renamed.old: renamed.new for renamed in KEYS} | {
    f"train.{name}": f"train.{OUTER}" for name in (CLIP, CLIP_BY)
}
ADDED = {("eval", "weights"): "trained"}  # keys that the previous version did not have, with the value that it implied
_WORD = re.compile(r"(?P<prefix>~|\+{0,2})(?P<key>[^=]+?)(?:=(?P<value>.*))?", re.DOTALL)


class Translated(NamedTuple):
    plain: dict[str, object]
    lines: tuple[str, ...]  # for the user: which old names are in it, and what they are called now


def new_key(key: str) -> str:
    """Today's name of a key."""
    return OLD_KEYS.get(key, key)


def key_of(word: str) -> str:
    """The key that a word of the command line sets."""
    found = _WORD.fullmatch(word)
    return found["key"] if found else word


def translated_words(words: Sequence[str], choices: Mapping[str, Sequence[str]]) -> tuple[list[str], tuple[str, ...]]:
    """Words that Hydra can compose, and lines for the user.

    An old choice gets its new name. An old key is added to the configuration by `++`, whether there or not;
    `translated` gives it its new name after composing. `choices` are the files of each group.
    """
    lines: dict[str, None] = {}

    def translate(word: str) -> str:
        found = _WORD.fullmatch(word)
        if not found:
            return word
        prefix, key, value = found["prefix"], found["key"], found["value"]
        if key in OLD_KEYS:
            if prefix == "~":
                lines[_line(key, OLD_KEYS[key])] = None
                return f"~{OLD_KEYS[key]}"
            return word if value is None else f"++{key}={value}"
        group = key.partition("@")[0]
        for (of, old), new in CHOICES.items():
            if value is not None and of == group and old not in choices.get(group, ()):
                other = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w.-])", new, value)
                if other != value:
                    lines[_line(f"{group}={old}", f"{group}={new}")] = None
                    value = other
        return word if value is None else f"{prefix}{key}={value}"

    return [translate(word) for word in words], tuple(lines)


def translated(plain: Mapping[str, object], words: Sequence[str] = ()) -> Translated:
    """A composed or stored configuration with today's names.

    Where a key is there by both names, a new one among `words` wins, else the old one.
    """
    lines: list[str] = []
    said = {key_of(word) for word in words}
    found = _mapped(_with_new_classes(plain, "", lines))
    for renamed in KEYS:
        group, _, old = renamed.old.rpartition(".")
        new = renamed.new.rpartition(".")[2]
        for key, values in _groups(found, group):
            if old not in values or _is_own_field(values, old, new):
                continue
            value = values[old]
            lines.append(_line(_full_key(key, old), _full_key(key, new)))
            if isinstance(value, str) and value in renamed.values:
                value = renamed.values[value]
                lines[-1] += f", its value {values[old]} is now {value}"
            both = new in values and _full_key(key, new) in said and _full_key(key, old) not in said
            kept = {name: values[new] if both and name == new else each for name, each in values.items() if name != old}
            found = _replaced(found, key, kept if both else {**kept, new: value})
    train = found.get("train")
    if isinstance(train, Mapping) and (CLIP in train or CLIP_BY in train):
        found["train"] = _with_outer(_mapped(train), f"train.{OUTER}" in said, lines)
    for (group, name), value in ADDED.items():
        there = found.get(group)
        if isinstance(there, Mapping) and name not in there:
            found[group] = {**there, name: value}
    return Translated(found, tuple(lines))


def translated_choices(choices: Mapping[str, str], files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Stored choices with today's names; a file of the old name that is there is another one."""
    return {
        group: name if name in files.get(group, ()) else CHOICES.get((group, name), name)
        for group, name in choices.items()
    }


def with_previous_names(plain: Mapping[str, object]) -> dict[str, object]:
    """The configuration as the previous version would have composed it, whose runs are found by the hash of that."""
    found = _mapped(_with_old_classes(plain))
    for renamed in KEYS:
        group, _, old = renamed.old.rpartition(".")
        new = renamed.new.rpartition(".")[2]
        old_values = {after: before for before, after in renamed.values.items()}
        for key, values in _groups(found, group):
            if new in values:
                value = values[new]
                value = old_values.get(value, value) if isinstance(value, str) else value
                kept = {name: each for name, each in values.items() if name != new}
                found = _replaced(found, key, {**kept, old: value})
    train = found.get("train")
    if isinstance(train, Mapping) and OUTER in train:
        found["train"] = _with_clip(_mapped(train))
    for (group, name), value in ADDED.items():
        there = found.get(group)
        if isinstance(there, Mapping) and there.get(name) == value:
            found[group] = {key: each for key, each in there.items() if key != name}
    return found


def _with_outer(train: Mapping[str, object], new_wins: bool, lines: list[str]) -> dict[str, object]:
    """clip=10, clip_by=norm is now outer=[{clip_by_norm: 10}]; clip=null is outer=[]."""
    clip, by = train.get(CLIP), train.get(CLIP_BY, "value")
    outer = [] if clip is None else [{f"clip_by_{by}": clip}]
    lines.append(_line("train.clip", f"'train.outer={str(outer).replace(chr(39), '')}'"))
    kept = {name: value for name, value in train.items() if name not in (CLIP, CLIP_BY)}
    return kept if new_wins else {**kept, OUTER: outer}


def _with_clip(train: Mapping[str, object]) -> dict[str, object]:
    kept = {name: value for name, value in train.items() if name != OUTER}
    outer = train[OUTER]
    if outer == []:
        return {**kept, CLIP: None, CLIP_BY: "value"}
    if isinstance(outer, Sequence) and len(outer) == 1 and isinstance(outer[0], Mapping):
        for by in ("value", "norm"):
            if list(outer[0]) == [f"clip_by_{by}"]:
                return {**kept, CLIP: outer[0][f"clip_by_{by}"], CLIP_BY: by}
    return dict(train)  # the previous version had nothing of this kind


def _line(old: str, new: str) -> str:
    return f"{old} is now called {new}; the old name works until the next release"


def _full_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _mapped(value: object) -> dict[str, object]:
    assert isinstance(value, Mapping)
    return {str(name): each for name, each in value.items()}


def _groups(plain: Mapping[str, object], group: str) -> list[tuple[str, dict[str, object]]]:
    """The groups of values a renamed key may be in; for data, the sources of a mixture too."""
    if not group:
        return [("", dict(plain))]
    values = plain.get(group)
    if not isinstance(values, Mapping):
        return []
    found = [(group, _mapped(values))]
    members = values.get("sources") if group == "data" else None
    if isinstance(members, Mapping):
        inside = [(f"data.sources.{name}", each) for name, each in members.items()]
        found += [(key, _mapped(each)) for key, each in inside if isinstance(each, Mapping)]
    return found


def _replaced(plain: Mapping[str, object], key: str, values: dict[str, object]) -> dict[str, object]:
    if not key:
        return values
    name, _, rest = key.partition(".")
    inner = plain[name]
    return {**plain, name: _replaced(_mapped(inner), rest, values) if rest else values}


def _is_own_field(values: Mapping[str, object], old: str, new: str) -> bool:
    """Whether the class that takes the values has a field of the old name, as an algorithm of the user's own may."""
    if TARGET not in values:
        return False
    try:
        cls = target_class(values, "")
    except ConfigError:
        return True  # said later, with its key
    names = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return old in names or new not in names


def _with_new_classes(value: object, key: str, lines: list[str]) -> object:
    if isinstance(value, Mapping):
        return {str(name): _with_new_classes(each, _full_key(key, str(name)), lines) for name, each in value.items()}
    if key.rpartition(".")[2] == TARGET and isinstance(value, str) and value in CLASSES:
        lines.append(_line(f"{key}={value}", CLASSES[value]))
        return CLASSES[value]
    return value


def _with_old_classes(value: object, name: str = "") -> object:
    if isinstance(value, Mapping):
        return {str(key): _with_old_classes(each, str(key)) for key, each in value.items()}
    old = {new: old for old, new in CLASSES.items()}
    return old.get(value, value) if name == TARGET and isinstance(value, str) else value


def tell(lines: Sequence[str]) -> None:
    """On stderr, so that what a script reads from stdout stays as it was."""
    for line in lines:
        print(f"metarun: {line}", file=sys.stderr)
