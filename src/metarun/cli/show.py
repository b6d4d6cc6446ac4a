"""`metarun show`: the composed, checked configuration, each value with the line it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from metarun.config.compose import traced
from metarun.config.places import conf_dir
from metarun.config.schema import RunConfig, load
from metarun.run.build import prepare
from metarun.track.console import say

KEY, VALUE = 28, 40  # columns


def show(words: list[str]) -> int:
    composed, files = traced(words)
    config = load(composed.plain, composed.choices)
    prepare(config, say)
    for group, name in sorted(composed.choices.items()):
        print(f"{group:<{KEY}} {name:<{VALUE}} {_chooser(group, name, words)}".rstrip())
    print()
    origin = origins(words, files)
    for key, value in _flat(composed.plain, ""):
        print(f"{key:<{KEY}} {_text(value):<{VALUE}} {origin.get(key, '')}".rstrip())
    print(f"\n{'run directory':<{KEY}} {config.folder}{_state(config)}")
    return 0


def _chooser(group: str, name: str, words: list[str]) -> str:
    if any(word.partition("=")[0] == group for word in words):
        return "command line"
    listed = yaml.safe_load((conf_dir() / "run.yaml").read_text())["defaults"]
    return "conf/run.yaml" if {group: name} in listed else "brought by another choice"


def origins(words: list[str], files: list[tuple[str, Path]]) -> dict[str, str]:
    """Key -> the file and line that decides it, with the comment beside it; or the command line."""
    found: dict[str, str] = {}
    for package, file in files:
        text = file.read_text()
        base = re.search(r"^# @package _global_", text, re.MULTILINE)
        prefix = "" if base or not package else f"{package}."
        lines = text.splitlines()
        for key, line in _lines(yaml.compose(text), prefix):
            comment = re.search(r"\s(#.*)$", lines[line])
            found[key] = f"{_shown(file)}:{line + 1}{'  ' + comment[1] if comment else ''}"
    for word in words:
        key, equals, _ = word.lstrip("+~").partition("=")
        if equals:
            found = {
                k: ("command line" if k == key or (k.startswith(f"{key}.") and "." in key) else v)
                for k, v in found.items()
            }
            found[key] = "command line"
    return found


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key = prefix + str(name.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _lines(value, f"{key}.")
        else:
            yield key, name.start_mark.line


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("...\n").strip()


def _shown(file: Path) -> str:
    return f"conf/{file.relative_to(conf_dir())}" if file.is_relative_to(conf_dir()) else str(file)


def _state(config: RunConfig) -> str:
    if not config.folder.exists():
        return " (new)"
    return " (finished)" if (config.folder / "summary.json").exists() else " (begun)"
