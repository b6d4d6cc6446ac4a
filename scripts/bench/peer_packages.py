"""The peers that metarun does not need, in a folder of the bench's own: what is installed beside it stays as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".bench"
PEERS = FOLDER / "peers"
# Without what they ask for: torch is there, the rest is named here.
WANTED = {"higher": ("higher==0.2.1",), "torchopt": ("torchopt==0.7.3", "optree", "graphviz")}
PATIENCE_S = 300
_failed: dict[str, str] = {}


def add_to_path() -> None:
    """Last on the path, so that nothing in it hides what metarun uses."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
        importlib.invalidate_caches()


def install_missing(say: Callable[[str], None]) -> None:
    add_to_path()
    for name, packages in WANTED.items():
        if importlib.util.find_spec(name) is None:
            say(f"{name}: installed into {PEERS}")
            _install(name, packages)
            importlib.invalidate_caches()


def import_failure(error: Exception) -> str:
    return next((f"pip says: {said}" for name, said in _failed.items() if name in str(error)), str(error))


def _install(name: str, packages: tuple[str, ...]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), *packages]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        _failed[name] = str(error)
        return
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        _failed[name] = said[-1] if said else f"exit code {done.returncode}"
