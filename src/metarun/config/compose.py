"""YAML files and command-line words into one plain configuration; the only module that imports Hydra."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import hydra
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metarun.config.places import conf_dir, groups
from metarun.config.renamed import CHOICES, OLD_KEYS, translated, translated_choices, translated_words
from metarun.errors import ConfigError, nearest

ROOT = "run"
HYDRA_DEFAULTS = "1.3"  # Hydra 1.3 asks which version's defaults hold; from 1.4 on they always do, and it warns
ONE_AFTER_ANOTHER = "BasicSweeper"  # Hydra's own sweeper
COMPUTED_GROUPS = ("tuned", "experiment")  # their file follows from the other choices, or changes them
_MISSING = object()


class Composed(NamedTuple):
    plain: dict[str, object]  # group -> its values, as YAML has them
    choices: dict[str, str]  # group -> file
    renamed: tuple[str, ...] = ()  # a line for each old name that was used


def compose(words: Sequence[str]) -> Composed:
    """One configuration; a mistake in the words is a ConfigError."""
    given, lines = translated_words(words, groups())
    with _hydra_initialized(), _as_config_errors(given):
        composed = _without_hydra(hydra_compose(ROOT, overrides=given, return_hydra_config=True))
    return _completed(composed, words, lines)


def compose_with_files(words: Sequence[str]) -> tuple[Composed, list[tuple[str, Path]]]:
    """The configuration, and (package, file) of all files in it; a later file wins."""
    given, lines = translated_words(words, groups())
    with _hydra_initialized(), _as_config_errors(given):
        config = hydra_compose(ROOT, overrides=given, return_hydra_config=True)
        folders = [conf_dir(), *(Path(place.removeprefix("file://")) for place in config.hydra.searchpath)]
        loader = GlobalHydra.instance().config_loader()
        found = []
        for default in loader.compute_defaults_list(ROOT, given, RunMode.RUN).defaults:
            files = [folder / f"{default.config_path}.yaml" for folder in folders]
            file = next((file for file in files if file.is_file()), None)
            if file is not None:
                found.append((default.package or "", file))
        composed = _without_hydra(config)
    return _completed(composed, words, lines), found


def read_choice(group: str, name: str) -> dict[str, object]:
    """The values of one file, without its defaults list: 100 times as fast as composing a run with it."""
    config = OmegaConf.create({group: OmegaConf.load(conf_dir() / group / f"{name}.yaml")})
    config[group].pop("defaults", None)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return dict(plain[group])


def sweep(words: Sequence[str], job: Callable[[Composed, int, int], None], check: Callable[[Composed], None]) -> None:
    """Every combination in turn, through Hydra's launcher and sweeper; all are checked before the first starts.

    `job` gets the configuration, its number and how many there are; 0 where a sweeper of its own decides as it goes.
    """
    given, lines = translated_words(words, groups())
    with _hydra_initialized():
        with _as_config_errors(given):
            planned = _planned(given)
        for one in planned or []:
            check(_completed(one, words, lines))
        total = len(planned) if planned else 0
        count = itertools.count(1)

        def task(config: DictConfig) -> None:
            composed = _composed(config, HydraConfig.get().runtime.choices)
            job(_completed(composed, words, lines), next(count), total)

        instance = GlobalHydra.instance().hydra
        assert instance is not None, "Hydra is not initialized"
        instance.multirun(ROOT, task, given, with_log_configuration=False)


def compose_over(base: Composed, words: Sequence[str]) -> Composed:
    """Words on top of a stored configuration, perhaps of another version of the YAML files."""
    given, lines = translated_words(words, groups())
    with _hydra_initialized(), _as_config_errors(given):
        overrides = _parsed(given)
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
        if key not in OLD_KEYS and OmegaConf.select(plain, key, default=_MISSING) is _MISSING:
            raise ConfigError(unknown_key(key))
        OmegaConf.update(plain, key, value, force_add=key in OLD_KEYS)
    return _completed(_composed(plain, choices), words, lines)


def composed_from_stored(plain: Mapping[str, object], choices: Mapping[str, str]) -> Composed:
    """The configuration of a run of any earlier version: today's names, and today's defaults for keys it lacks."""
    stored, today = translated(plain).plain, translated_choices(choices, groups())
    try:
        now = compose([f"{group}={name}" for group, name in today.items() if group not in COMPUTED_GROUPS]).plain
    except ConfigError:  # a choice from a folder of the user's own, which is not searched now
        return Composed(stored, today)
    return Composed(_filled(stored, now), today)


def _filled(values: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """`values`, and `defaults` for keys that are not among them."""
    filled = dict(defaults)
    for key, value in values.items():
        inner = defaults.get(key)
        filled[key] = _filled(value, inner) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return filled


def complete_shell(words: Sequence[str]) -> None:
    """Shell completion, as Hydra offers it: install=bash, uninstall=bash, query=bash."""
    with _hydra_initialized():
        instance = GlobalHydra.instance().hydra
        assert instance is not None, "Hydra is not initialized"
        instance.shell_completion(ROOT, list(words))


def _planned(words: Sequence[str]) -> list[Composed] | None:
    """The runs that the words mean; None where a sweeper of its own decides that as it goes."""
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration(ROOT, list(words), RunMode.MULTIRUN)
    if not config.hydra.sweeper._target_.endswith(f".{ONE_AFTER_ANOTHER}"):
        return None
    fixed = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    values = {override.get_key_element(): _swept(override) for override in _parsed([*fixed, *words])}
    return [_without_hydra(loader.load_sweep_config(config, list(job))) for job in itertools.product(*values.values())]


def _swept(override: Override) -> list[str]:
    """The word of each value of a sweep over one key."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: names no values to try; list them, or choose a hydra/sweeper")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _parsed(words: Sequence[str]) -> list[Override]:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(list(words))


def _without_hydra(config: DictConfig) -> Composed:
    """Without Hydra's own settings."""
    choices = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    return _composed(config, choices)


def _completed(composed: Composed, words: Sequence[str], lines: tuple[str, ...]) -> Composed:
    """With today's names, and with the values of the data sets that a mixture names."""
    plain, more = translated(_with_sources(composed.plain, words), words)
    return Composed(plain, composed.choices, tuple(dict.fromkeys([*lines, *more])))


def _with_sources(plain: dict[str, object], words: Sequence[str]) -> dict[str, object]:
    data = plain.get("data")
    named = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(named, list):
        return plain
    places = [word for word in words if word.startswith("hydra.searchpath=")]
    sources = {str(name): compose([f"data={name}", *places]).plain["data"] for name in named}
    return {**plain, "data": {**data, "sources": sources}}


def _composed(config: DictConfig, choices: Mapping[str, str] | DictConfig) -> Composed:
    chosen = {str(group): str(name) for group, name in choices.items() if name and not str(group).startswith("hydra/")}
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return Composed({str(key): value for key, value in plain.items()}, chosen)


@contextmanager
def _hydra_initialized() -> Iterator[None]:
    """Context manager: Hydra is initialized with our conf/ inside it; what was initialized before comes back."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with _initialized():
            yield
    finally:
        GlobalHydra.instance().hydra = before


def _initialized() -> initialize_config_dir:
    if hydra.__version__.startswith(f"{HYDRA_DEFAULTS}."):
        return initialize_config_dir(str(conf_dir()), job_name="metarun", version_base=HYDRA_DEFAULTS)
    return initialize_config_dir(str(conf_dir()), job_name="metarun")


@contextmanager
def _as_config_errors(words: Sequence[str]) -> Iterator[None]:
    """Context manager: an error of Hydra's or of a YAML file's becomes a ConfigError with key, value and remedy."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:  # Hydra raises plain ones too
        raise ConfigError(_message_of(error, words)) from error


def _message_of(error: Exception, words: Sequence[str]) -> str:
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
        word = several[1].lstrip("+")
        return f"{word}: several values are a sweep; say metarun -m {word}"
    return first


def _no_such_choice(group: str, name: str) -> str:
    known = groups().get(group, [])
    if (group, name) in CHOICES:
        return f"{group}={name}: is now called {CHOICES[group, name]}; change the name in the file that chooses it"
    return f"{group}={name}: no such choice{nearest(name, known)} ({', '.join(known)})"


def unknown_key(key: str) -> str:
    """The nearest group, or the nearest value of the default composition."""
    known = [*groups(), *_keys(compose([]).plain, "")]
    hint = nearest(key, known) or nearest(key.rpartition(".")[2], known)
    return f"{key}: unknown key{hint or '; metarun show lists all keys'}"


def _keys(values: Mapping[str, object], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
