"""Where the YAML lies: in the checkout, or inside the installed package."""

from __future__ import annotations

import functools
from pathlib import Path

import metarun


@functools.cache
def conf_dir() -> Path:
    package = Path(metarun.__file__).parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parents[1] / "conf"


def groups() -> dict[str, list[str]]:
    """Group -> choices. A group inside a group is called group/inner, as on the command line.

    A file whose name begins with _ is no choice: other files take it up in their defaults list.
    """
    root = conf_dir()
    found: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*.yaml")):
        group = file.parent.relative_to(root).as_posix()
        if group != "." and not file.stem.startswith("_"):
            found.setdefault(group, []).append(file.stem)
    return found
