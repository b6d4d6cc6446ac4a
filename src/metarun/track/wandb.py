"""Weights & Biases, called from a thread of its own, so that a slow or failing service never slows or ends the run."""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from netrc import NetrcParseError, netrc
from pathlib import Path
from queue import SimpleQueue
from socket import create_connection
from threading import Thread
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from metarun.track.console import shortest_path

if TYPE_CHECKING:
    import wandb

    from metarun.types import Artifacts

Returned = TypeVar("Returned")
REACH_TIMEOUT_S = 5.0  # for a handshake
PATIENCE_S = 2.0  # a silent wait longer than this is announced
FLUSH_S = 1.0  # what a kill -9 can take from W&B's file
FIRST_HOST = "api.wandb.ai"  # the public service's first address: older netrc files have its key under this name


class WandbModule(Protocol):
    """What is used of the module wandb, which is imported late."""

    Settings: type[wandb.Settings]
    init: Callable[..., wandb.Run]


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["auto", "online", "offline"]
    project: str
    entity: str | None
    tags: tuple[str, ...]
    group: str | None
    system_metrics: bool
    init_timeout_s: float
    finish_timeout_s: float

    def __post_init__(self) -> None:
        timeouts = {"init_timeout_s": self.init_timeout_s, "finish_timeout_s": self.finish_timeout_s}
        for name, seconds in timeouts.items():
            if seconds <= 0:
                raise ValueError(f"{name}={seconds:g}: need more than 0 seconds")


@dataclass(frozen=True)
class Identity:
    """How W&B knows a run. The id stays the same when a run is resumed; the settings may replace group and add tags."""

    run_id: str
    name: str
    group: str
    tags: tuple[str, ...]


class Wandb:
    """A tracker whose calls are queued and return at once. After a first failure it tells the run and does no more.

    A resumed run sends the steps after its checkpoint a second time. They have the same values, so no curve changes.
    """

    def __init__(
        self,
        settings: WandbConfig,
        identity: Identity,
        run_dir: Path,
        config: Mapping[str, object],
        note: Callable[[str], None],
    ) -> None:
        self.lost = False  # the thread hangs; wandb's exit hooks would hang too, so leave the process by os._exit
        self._settings, self._identity, self._config = settings, identity, dict(config)
        self._run_dir, self._note = run_dir.absolute(), note
        self._folder = self._run_dir / "wandb"
        self._offline = self._failed = False
        self._set_variables = _set_missing(_environ(self._folder))
        self._log_errors = logging.raiseExceptions
        logging.raiseExceptions = False  # on a full disk each line that wandb logs would print a traceback
        self._calls: SimpleQueue[Callable[[wandb.Run], None] | int] = SimpleQueue()
        self._thread = Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._put(partial(_send_metrics, row={"step": step, **metrics}))

    def finish(self, summary: Mapping[str, object], artifacts: Artifacts) -> None:
        self._put(partial(_send_result, summary=dict(summary), artifacts=artifacts, run_id=self._identity.run_id))

    def close(self, exit_code: int) -> None:
        limit = self._settings.finish_timeout_s
        self._calls.put(exit_code)
        self._thread.join(min(PATIENCE_S, limit))
        if self._thread.is_alive() and limit > PATIENCE_S:
            self._note(f"W&B: waiting for it to finish, at most {limit:g} s")
            self._thread.join(limit - PATIENCE_S)
        self.lost = self._thread.is_alive()
        _unset(self._set_variables)
        logging.raiseExceptions = self._log_errors
        sync = f"wandb sync {shortest_path(self._sessions())}"
        if self.lost:
            self._note(f"W&B: not finished after {limit:g} s; what is missing there can be sent with: {sync}")
        elif self._offline and not self._failed:
            self._note(f"W&B: kept offline; send it with: {sync}")

    def _sessions(self) -> Path:
        """What `wandb sync` takes: this session's folder, or a pattern for all sessions of a resumed run."""
        pattern = f"offline-run-*-{self._identity.run_id}*"  # wandb numbers sessions of the same second
        several = self._offline and len(list(self._folder.parent.glob(pattern))) > 1
        return self._folder.with_name(pattern) if several else self._folder

    def _put(self, call: Callable[[wandb.Run], None]) -> None:
        if not self._failed:
            self._calls.put(call)

    def _work(self) -> None:
        exit_before, hook_before = sys.exit, sys.excepthook
        run = self._guarded(self._open)
        sys.exit, sys.excepthook = exit_before, hook_before  # undo wandb's hooks: it is told the exit code by close()
        while not isinstance(call := self._calls.get(), int):
            if run is not None and not self._failed:
                self._guarded(partial(call, run))
        self._guarded(partial(_end_session, run, call))

    def _guarded(self, act: Callable[[], Returned]) -> Returned | None:
        try:
            return act()
        except (Exception, SystemExit) as error:  # no failure of W&B may end the run
            if not self._failed:
                self._note(f"W&B: failed, and is left out from here on ({_error_line(error)})")
            self._failed = True
            return None

    def _open(self) -> wandb.Run | None:
        wanted = self._settings.mode
        mode: str = os.environ.get("WANDB_MODE", wanted) if wanted == "auto" else wanted
        if mode == "disabled":
            return None
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)  # wandb would silently choose another folder
        settings = self._wandb_settings(wandb)
        if mode in ("offline", "dryrun"):
            return self._start(wandb, settings, online=False)
        server = wandb.setup(settings).settings
        key = _api_key(server)
        if key is None and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            if mode == "online":
                self._note("W&B: no API key found (wandb login stores one), so this run is kept offline")
            return self._start(wandb, settings, online=False)
        settings.api_key = key  # passed on, so that wandb never asks for one
        try:
            _reach(server.base_url)
            return self._start(wandb, settings, online=True)
        except Exception as error:
            self._note(f"W&B: server not reached, so this run is kept offline ({_error_line(error)})")
            wandb.teardown()  # frees the run id
            settings.api_key = None
            return self._start(wandb, settings, online=False)

    def _wandb_settings(self, module: WandbModule) -> wandb.Settings:
        settings: wandb.Settings = module.Settings(
            silent=True,
            console="off",
            init_timeout=self._settings.init_timeout_s,
            disable_code=True,
            disable_git=True,  # the summary has the git state; asking for it again takes seconds in a large repository
            label_disable=True,
            x_disable_stats=not self._settings.system_metrics,
            x_transaction_log_flush_interval=FLUSH_S,
        )
        return settings

    def _start(self, module: WandbModule, settings: wandb.Settings, *, online: bool) -> wandb.Run:
        run: wandb.Run = module.init(
            mode="online" if online else "offline",
            project=self._settings.project,
            entity=self._settings.entity,
            id=self._identity.run_id,
            name=self._identity.name,
            group=self._settings.group or self._identity.group,
            tags=list(dict.fromkeys((*self._identity.tags, *self._settings.tags))),
            config=self._config,
            dir=str(self._run_dir),
            resume="allow" if online else None,  # offline, the server joins files of one id when they are sent
            reinit="create_new",
            settings=settings,
        )
        self._folder, self._offline = Path(run.settings.sync_dir), not online
        run.define_metric("*", step_metric="step")
        if online and run.url:
            self._note(f"W&B: {run.url}")
        return run


def _send_metrics(run: wandb.Run, row: dict[str, float]) -> None:
    run.log(row)


def _send_result(run: wandb.Run, summary: dict[str, object], artifacts: Artifacts, run_id: str) -> None:
    import wandb

    with artifacts.scores.open(newline="") as file:
        scores = [[int(row["index"]), float(row["score"])] for row in csv.DictReader(file)]
    run.log(
        {
            "pictures/curves": wandb.Image(str(artifacts.curves)),
            "pictures/episodes": wandb.Image(str(artifacts.episodes)),
            "test/scores": wandb.Table(columns=["index", "score"], data=scores),
        }
    )
    artifact = wandb.Artifact(f"best-{run_id}", type="model", metadata=summary)
    for path in (artifacts.best, artifacts.config):
        artifact.add_file(str(path), policy="immutable")  # taken from the run directory, not copied first
    run.log_artifact(artifact)
    run.summary.update(summary)


def _end_session(run: wandb.Run | None, exit_code: int) -> None:
    if "wandb" not in sys.modules:
        return
    import wandb

    try:
        if run is not None:
            run.finish(exit_code=exit_code)
    finally:
        wandb.teardown(exit_code)  # ends its process here, under the time limit, and not in a hook at exit


def _api_key(server: wandb.Settings) -> str | None:
    """The API key that wandb would use: from the environment, its settings, or the netrc entry of the server."""
    if key := os.environ.get("WANDB_API_KEY") or server.api_key:
        return key
    home = (Path(name).expanduser() for name in ("~/.netrc", "~/_netrc"))
    given = os.environ.get("NETRC")
    path = Path(given).expanduser() if given else next((path for path in home if path.exists()), None)
    try:
        entries = netrc(path) if path else None
    except (OSError, NetrcParseError):
        return None
    hosts = [urlsplit(server.base_url).netloc, *([] if "WANDB_BASE_URL" in os.environ else [FIRST_HOST])]
    found = next((entry for host in hosts if entries and (entry := entries.authenticators(host))), None)
    return found[2] or None if found else None


def _reach(url: str) -> None:
    """Raises within seconds if the server cannot be reached; wandb would try for its whole time limit."""
    parts = urlsplit(url)
    if parts.scheme not in getproxies() and parts.hostname:
        create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), REACH_TIMEOUT_S).close()


def _environ(folder: Path) -> dict[str, str]:
    """Environment variables that keep wandb's files in the run directory and its error reports off the network."""
    return {"WANDB_DATA_DIR": str(folder), "WANDB_CACHE_DIR": str(folder / "cache"), "WANDB_ERROR_REPORTING": "false"}


def _set_missing(values: Mapping[str, str]) -> list[str]:
    """Sets the environment variables that the user has not set, and returns their names."""
    names = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in names})
    return names


def _unset(names: list[str]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _error_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
