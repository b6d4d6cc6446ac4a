"""Every test runs in an empty folder of its own, without the user's W&B settings; data is made once a session.
The contracts of metarun.types are checked at every call."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import checked_contracts

checked_contracts.install()

OUTSIDE = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-gw"):  # one cache for all workers
        shared = shared.parent
    return shared / "cache"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METARUN_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    return folder
