"""YAML files and command-line words into one plain configuration; the only place that meets Hydra."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metarun.config.places import conf_dir, groups
from metarun.errors import ConfigError, nearest

ROOT = "run"
VERSION = "1.3"  # of Hydra's behaviour
_MISSING = object()


class Composed(NamedTuple):
    plain: dict[str, Any]
    choices: dict[str, str]  # group -> file


def compose(words: Sequence[str]) -> Composed:
    """One configuration; a mistake in the words is a ConfigError."""
    with _session(), _explained(words):
        composed = _alone(hydra_compose(ROOT, overrides=list(words), return_hydra_config=True))
    return _with_sources(composed, words)


def traced(words: Sequence[str]) -> tuple[Composed, list[tuple[str, Path]]]:
    """The same, and (package, file) of all that is in it, in the order in which later ones win."""
    with _session(), _explained(words):
        config = hydra_compose(ROOT, overrides=list(words), return_hydra_config=True)
        folders = [conf_dir(), *(Path(place.removeprefix("file://")) for place in config.hydra.searchpath)]
        loader = GlobalHydra.instance().config_loader()
        found = []
        for default in loader.compute_defaults_list(ROOT, list(words), RunMode.RUN).defaults:
            files = [folder / f"{default.config_path}.yaml" for folder in folders]
            file = next((file for file in files if file.is_file()), None)
            if file is not None:
                found.append((default.package or "", file))
        composed = _alone(config)
    return _with_sources(composed, words), found


def values(group: str, name: str) -> dict[str, Any]:
    """What one file says by itself, which takes a hundredth of the time of composing a run with it."""
    config = OmegaConf.create({group: OmegaConf.load(conf_dir() / group / f"{name}.yaml")})
    config[group].pop("defaults", None)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return dict(plain[group])


def sweep(words: Sequence[str], job: Callable[[Composed, int, int], None], check: Callable[[Composed], None]) -> None:
    """Every combination in turn, through Hydra's launcher and sweeper; all are checked before the first starts."""
    hydra = Hydra.create_main_hydra2("metarun", create_config_search_path(str(conf_dir())))
    try:
        with _explained(words):
            planned = _planned(hydra, words)
        for one in planned or []:
            check(_with_sources(one, words))
        total = len(planned) if planned else 0
        count = itertools.count(1)

        def task(config: DictConfig) -> None:
            job(_with_sources(_composed(config, HydraConfig.get().runtime.choices), words), next(count), total)

        hydra.multirun(ROOT, task, list(words), with_log_configuration=False)
    finally:
        GlobalHydra.instance().clear()


def overlay(base: Composed, words: Sequence[str]) -> Composed:
    """Words on top of a configuration that was composed before, perhaps by another version of the YAML."""
    with _session(), _explained(words):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides(list(words))
    plain = DictConfig(copy.deepcopy(base.plain))
    OmegaConf.set_struct(plain, True)
    choices = dict(base.choices)
    for override in sorted(overrides, key=lambda override: override.key_or_group not in groups()):  # files, then values
        key, value = override.key_or_group, override.value()
        if key in groups() and "/" not in key:
            with open_dict(plain):
                plain[key] = compose([f"{key}={value}"]).plain[key]
            choices[key] = str(value)
            continue
        if OmegaConf.select(plain, key, default=_MISSING) is _MISSING:
            raise ConfigError(unknown_key(key))
        OmegaConf.update(plain, key, value)
    return _with_sources(_composed(plain, choices), words)


def complete(words: Sequence[str]) -> None:
    """Shell completion, as Hydra offers it: install=bash, uninstall=bash, query=bash."""
    hydra = Hydra.create_main_hydra2("metarun", create_config_search_path(str(conf_dir())))
    try:
        hydra.shell_completion(ROOT, list(words))
    finally:
        GlobalHydra.instance().clear()


def _planned(hydra: Hydra, words: Sequence[str]) -> list[Composed] | None:
    """The runs that the words mean; None where a sweeper of its own decides that as it goes."""
    config = hydra.compose_config(ROOT, list(words), RunMode.MULTIRUN, with_log_configuration=False)
    if not config.hydra.sweeper._target_.endswith(BasicSweeper.__name__):
        return None
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    fixed = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    jobs = BasicSweeper.split_arguments(parser.parse_overrides([*fixed, *words]), max_batch_size=None)[0]
    return [_alone(hydra.config_loader.load_sweep_config(config, overrides)) for overrides in jobs]


def _alone(config: DictConfig) -> Composed:
    """Without Hydra's own settings."""
    choices = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    return _composed(config, choices)


def _with_sources(composed: Composed, words: Sequence[str]) -> Composed:
    """A mixture names its data sets; here each name becomes that data set's own values."""
    named = composed.plain.get("data", {}).get("sources")
    if not isinstance(named, list):
        return composed
    places = [word for word in words if word.startswith("hydra.searchpath=")]
    sources = {name: compose([f"data={name}", *places]).plain["data"] for name in named}
    return composed._replace(plain={**composed.plain, "data": {**composed.plain["data"], "sources": sources}})


def _composed(config: DictConfig, choices: Mapping[Any, Any]) -> Composed:
    chosen = {str(group): str(name) for group, name in choices.items() if name and not str(group).startswith("hydra/")}
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return Composed({str(key): value for key, value in plain.items()}, chosen)


@contextmanager
def _session() -> Iterator[None]:
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), job_name="metarun", version_base=VERSION):
            yield
    finally:
        GlobalHydra.instance().hydra = before


@contextmanager
def _explained(words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:  # Hydra raises plain ones too
        raise ConfigError(_explain(error, words)) from error


def _explain(error: Exception, words: Sequence[str]) -> str:
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '(.+)'", text)
        if found:
            group, _, name = found[1].rpartition("/")
            return _no_such_choice(group, name)
    unknown = re.match(r"(?:In '.+': )?Could not override '(.+)'", first)
    if unknown:
        return unknown_key(unknown[1])
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value ({first.rstrip('.')}); put special characters in quotes"
    if "Config group override must be" in first:  # a number, where a file's name is wanted
        group, _, name = next(word for word in words if word.partition("=")[0] in groups()).partition("=")
        return _no_such_choice(group, name)
    several = re.match(r"Ambiguous value for argument '(.+)'", first)
    if several:
        return f"{several[1]}: several values are a sweep; say metarun -m {several[1]}"
    return first


def _no_such_choice(group: str, name: str) -> str:
    known = groups().get(group, [])
    return f"{group}={name}: no such choice{nearest(name, known)} ({', '.join(known)})"


def unknown_key(key: str) -> str:
    """The nearest group, or the nearest value of the default composition."""
    known = [*groups(), *_keys(compose([]).plain, "")]
    hint = nearest(key, known) or nearest(key.rpartition(".")[2], known)
    return f"{key}: unknown key{hint or '; metarun show lists all keys'}"


def _keys(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
