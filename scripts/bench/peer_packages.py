"""Installs higher and torchopt into .bench/peers, apart from metarun's environment, which stays as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".bench"
PEERS = FOLDER / "peers"
# Installed without their dependencies: torch is there already, the others are named here.
PACKAGES = {"higher": ("higher==0.2.1",), "torchopt": ("torchopt==0.7.3", "optree", "graphviz")}
INSTALL_TIMEOUT_S = 300
_pip_errors: dict[str, str] = {}


def add_to_path() -> None:
    """Appends the folder to sys.path; last, so that it hides nothing that metarun imports."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
        importlib.invalidate_caches()


def install_missing(say: Callable[[str], None]) -> None:
    add_to_path()
    for name, packages in PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            say(f"installing {name} into {PEERS}")
            _install(name, packages)
            importlib.invalidate_caches()


def import_failure(error: Exception) -> str:
    """Why a library cannot be imported: pip's message where installing it failed, else the error itself."""
    return next((f"pip says: {said}" for name, said in _pip_errors.items() if name in str(error)), str(error))


def _install(name: str, packages: tuple[str, ...]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), *packages]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        _pip_errors[name] = str(error)
        return
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        _pip_errors[name] = said[-1] if said else f"exit code {done.returncode}"
