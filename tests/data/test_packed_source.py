"""The name of a packed file changes with every field of a source, except those that are named with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from metarun.config.convert import dataclass_from, target_class
from metarun.data.sources.arrays import Arrays
from metarun.data.sources.folder import Folder
from metarun.data.sources.glyphs import Glyphs
from metarun.data.sources.packed_source import PackedSource
from metarun.data.store.pool import Pool

CONF = Path(__file__).parents[2] / "conf/data"


def yaml_values(name: str) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=False)
    return {str(key): value for key, value in values.items() if key != "defaults"}


def is_packed(name: str) -> bool:
    return issubclass(target_class(yaml_values(name), "data"), PackedSource)


NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if is_packed(path.stem))


def source_of(name: str) -> PackedSource:
    values = yaml_values(name)
    source: object = dataclass_from(target_class(values, "data"), values, "data")
    assert isinstance(source, PackedSource)
    return source


def another(value: object) -> object:
    """Some other value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (another(value[0]), *value[1:]) if value else ("other",)
    return "other" if value is None else value + "x" if isinstance(value, str) else value + 1  # type: ignore[operator]


def with_field(source: PackedSource, name: str, value: object) -> PackedSource:
    """A copy without its own checks, which would refuse some of the values."""
    changed = copy.copy(source)
    object.__setattr__(changed, name, value)
    return changed


def test_all_sources_but_those_of_functions_and_mixtures_are_packed() -> None:
    assert len(NAMES) == 14
    assert {path.stem for path in CONF.glob("*.yaml")} - set(NAMES) == {"sine", "mixture"}


@pytest.mark.parametrize("name", NAMES)
def test_the_key_changes_with_every_field_but_the_named_ones(name: str) -> None:
    source = source_of(name)
    keys = {field: with_field(source, field, another(value)).cache_key() for field, value in vars(source).items()}
    same = {field for field, key in keys.items() if key == source.cache_key()}
    assert same == set(source.unpacked)
    others = [key for field, key in keys.items() if field not in source.unpacked]
    assert len(set(others)) == len(others) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_field_that_is_left_out_has_a_reason_of_its_own_words(name: str) -> None:
    source = source_of(name)
    assert set(source.unpacked) <= set(vars(source))
    assert all(len(reason.split()) > 3 for reason in source.unpacked.values())
    assert {field for field in source.places if field not in source.unpacked} == set()


@pytest.mark.parametrize("name", NAMES)
def test_the_key_changes_with_the_recipe_and_the_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(name)
    keys = {source.cache_key(), source.cache_key((("a.png", 3),)), source.cache_key((("a.png", 4),))}
    assert len(keys) == 3
    monkeypatch.setattr(type(source), "recipe", source.recipe + 1)
    assert source.cache_key() not in keys


def test_a_field_that_is_forgotten_is_in_the_key() -> None:
    """Its author has named it nowhere."""

    @dataclass(frozen=True)
    class Tinted(Glyphs):
        tint: str

    red, green = (dataclass_from(Tinted, {**yaml_values("glyphs"), "tint": tint}, "data") for tint in ("red", "green"))
    assert len({red.cache_key(), green.cache_key(), source_of("glyphs").cache_key()}) == 3


def small_glyphs(**changed: object) -> PackedSource:
    few = {"train_alphabets": 2, "val_alphabets": 1, "test_alphabets": 1, "characters": 3, "drawers": 2}
    return dataclass_from(Glyphs, {**yaml_values("glyphs"), **few, **changed}, "data")


def small_arrays(folder: Path) -> Callable[..., PackedSource]:
    path = folder / "a.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(60, 4)), y=np.repeat(np.arange(20), 3))
    return lambda **changed: dataclass_from(Arrays, {**yaml_values("arrays"), "path": str(path), **changed}, "data")


def small_folder(folder: Path) -> Callable[..., PackedSource]:
    from PIL import Image

    for number in range(9):
        (folder / f"pictures/c{number}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"pictures/c{number}/0.png")
    values = {**yaml_values("folder"), "path": str(folder / "pictures"), "size": 8}
    return lambda **changed: dataclass_from(Folder, {**values, **changed}, "data")


OTHER: dict[str, dict[str, object]] = {
    "glyphs": {"mean": 0.5, "std": 0.5, "rotations": "all"},
    "arrays": {"split_seed": 2, "val_share": 0.3, "test_share": 0.3, "duplicates": "warn", "standardise": "none"},
    "folder": {
        "split_seed": 2,
        "val_share": 0.3,
        "test_share": 0.3,
        "duplicates": "warn",
        "rotations": "all",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}


@pytest.mark.parametrize("name", OTHER)
def test_fields_that_are_left_out_leave_the_packed_items_as_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = {"glyphs": lambda _: small_glyphs, "arrays": small_arrays, "folder": small_folder}[name](tmp_path)

    def loaded(cache: str, **changed: object) -> Pool:
        monkeypatch.setenv("METARUN_CACHE", str(tmp_path / cache))  # another one: packed again
        return make(**changed).load(lambda _: None)

    first = loaded("plain")
    for field, value in OTHER[name].items():
        again = loaded(field, **{field: value})
        assert np.array_equal(first.items, again.items), field
        assert (first.names, first.groups) == (again.names, again.groups), field
