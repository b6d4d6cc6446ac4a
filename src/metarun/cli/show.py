"""`metarun show`: the composed, checked configuration, each value with the line it comes from."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import yaml

from metarun.config.compose import compose_with_files
from metarun.config.places import conf_dir
from metarun.config.renamed import key_of, new_key, tell
from metarun.config.schema import check_config
from metarun.run.build import prepare
from metarun.run.directory import folder_in_use, run_dir
from metarun.track.console import say

KEY, VALUE = 28, 40  # columns


def show(words: list[str]) -> int:
    composed, files = compose_with_files(words)
    tell(composed.renamed)
    config = check_config(composed.plain, composed.choices)
    prepare(config, say)
    for group, name in sorted(composed.choices.items()):
        print(f"{group:<{KEY}} {name:<{VALUE}} {_chooser(group, name, words)}".rstrip())
    print()
    values = dict(leaf_values(composed.plain, ""))
    origin = origins(words, files, values)
    for key, value in values.items():
        print(f"{key:<{KEY}} {_as_yaml(value):<{VALUE}} {origin.get(key, '')}".rstrip())
    folder = folder_in_use(config)
    print(f"\n{'run directory':<{KEY}} {folder}{_state_of(folder)}")
    return 0


def _chooser(group: str, name: str, words: list[str]) -> str:
    if any(word.partition("=")[0] == group for word in words):
        return "command line"
    listed = yaml.safe_load((conf_dir() / "run.yaml").read_text())["defaults"]
    return "conf/run.yaml" if {group: name} in listed else "brought by another choice"


def origins(words: list[str], files: list[tuple[str, Path]], known: Container[str]) -> dict[str, str]:
    """Key -> the file and line that decides it, with the comment beside it; or the command line.

    A key that is not `known` is one that was renamed.
    """
    found: dict[str, str] = {}
    for package, file in files:
        text = file.read_text()
        base = re.search(r"^# @package _global_", text, re.MULTILINE)
        prefix = "" if base or not package else f"{package}."
        lines = text.splitlines()
        for key, line in _lines_of(yaml.compose(text), prefix):
            comment = re.search(r"\s(#.*)$", lines[line])
            found[key if key in known else new_key(key)] = (
                f"{_short_path(file)}:{line + 1}{'  ' + comment[1] if comment else ''}"
            )
    for word in words:
        key = key_of(word)
        key = key if key in known else new_key(key)
        if "=" in word:
            found = {
                k: ("command line" if k == key or (k.startswith(f"{key}.") and "." in key) else v)
                for k, v in found.items()
            }
            found[key] = "command line"
    return found


def _lines_of(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key = prefix + str(name.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _lines_of(value, f"{key}.")
        else:
            yield key, name.start_mark.line


def leaf_values(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    """(key, value) of every value that is no group."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaf_values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _as_yaml(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("...\n").strip()


def _short_path(file: Path) -> str:
    return f"conf/{file.relative_to(conf_dir())}" if file.is_relative_to(conf_dir()) else str(file)


def _state_of(folder: Path) -> str:
    if not folder.exists():
        return " (new)"
    return " (finished)" if run_dir(folder).summary.exists() else " (begun)"
