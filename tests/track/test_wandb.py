"""W&B gets all of a run, read back with wandb's own reader, and none of its failures reaches the run."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from PIL import Image

from metarun.track.wandb import Identity, Wandb, WandbConfig, _api_key
from metarun.types import Artifacts
from support import wandb_file

SETTINGS = WandbConfig(
    mode="auto",
    project="house",
    entity=None,
    tags=("mine",),
    group=None,
    system_metrics=False,
    init_timeout_s=2.0,
    finish_timeout_s=20.0,
)
IDENTITY = Identity(run_id="a1b2c3", name="maml/seed0", group="glyphs/maml", tags=("maml", "glyphs"))
CONFIG = {"algo": {"inner_lr": 0.4, "steps": 5}, "seed": 0}
SUMMARY = {"test/acc": 0.92, "test/ci95": 0.01, "best_step": 20, "protocol": {"data": "glyphs", "ways": 5}}
KEY = "0123456789abcdef" * 3


@pytest.fixture(autouse=True)
def hermetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "seed0"
    folder.mkdir()
    return folder


def artifacts(run_dir: Path) -> Artifacts:
    names = ("curves.png", "episodes.png", "scores.csv", "best.pt", "config.yaml")
    found = Artifacts(*(run_dir / name for name in names))
    Image.new("RGB", (5, 4)).save(found.curves)
    Image.new("RGB", (7, 6)).save(found.episodes)
    found.scores.write_text("index,score\n0,0.5\n1,0.75\n")
    found.best.write_bytes(b"weights")
    found.config.write_text("seed: 0\n")
    return found


def keep_in(notes: list[str]) -> Callable[[str], None]:
    """All but the note that a busy machine makes wandb slow."""
    return lambda text: None if "waiting for it" in text else notes.append(text)


def track(run_dir: Path, steps: range, exit_code: int = 0, settings: WandbConfig = SETTINGS) -> tuple[Wandb, list[str]]:
    notes: list[str] = []
    tracker = Wandb(settings, IDENTITY, run_dir, CONFIG, keep_in(notes))
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (1 + step)})
    if exit_code == 0:
        tracker.log(steps.stop, {"val/acc": 0.9})
        tracker.finish(SUMMARY, artifacts(run_dir))
    tracker.close(exit_code)
    return tracker, notes


def only(run_dir: Path) -> wandb_file.WandbFile:
    (file,) = wandb_file.files(run_dir)
    return wandb_file.read(file)


def test_an_offline_run_holds_everything(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ), sys.exit, sys.excepthook, logging.raiseExceptions
    tracker, notes = track(run_dir, range(10, 20))
    assert (dict(os.environ), sys.exit, sys.excepthook, logging.raiseExceptions) == before
    assert not tracker.lost
    (folder,) = run_dir.glob("wandb/offline-run-*-a1b2c3")
    assert len(notes) == 1
    assert "wandb sync" in notes[0]
    assert folder.name in notes[0]
    assert capfd.readouterr() == ("", "")

    kept = only(run_dir)
    assert kept.run["run_id"] == "a1b2c3"
    assert kept.run["project"] == "house"
    assert kept.run["display_name"] == "maml/seed0"
    assert kept.run["run_group"] == "glyphs/maml"
    assert kept.run["tags"] == ["maml", "glyphs", "mine"]
    config = kept.run["config"]["update"]
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert kept.history[:10] == [{"step": step, "train/loss": 1 / (1 + step)} for step in range(10, 20)]
    assert kept.history[10] == {"step": 20, "val/acc": 0.9}
    (metric,) = kept.of("metric")
    assert (metric["glob_name"], metric["step_metric"]) == ("*", "step")
    assert kept.exit_code == 0


def test_an_offline_run_holds_summary_pictures_table_and_artifact(run_dir: Path) -> None:
    track(run_dir, range(3))
    kept = only(run_dir)
    for name, value in {"test/acc": 0.92, "test/ci95": 0.01, "best_step": 20}.items():
        assert kept.summary[name] == value
    files = Path(wandb_file.files(run_dir)[0]).parent / "files"
    pictures = kept.history[-1]
    for name, size in (("curves", (5, 4)), ("episodes", (7, 6))):
        with Image.open(files / pictures[f"pictures/{name}.path"]) as picture:
            assert picture.size == size
    table = json.loads((files / pictures["test/scores.path"]).read_text())
    assert (table["columns"], table["data"]) == (["index", "score"], [[0, 0.5], [1, 0.75]])
    model = next(artifact for artifact in kept.of("artifact") if artifact["type"] == "model")
    contents = {entry["path"]: Path(entry["local_path"]) for entry in model["manifest"]["contents"]}
    assert contents == {name: run_dir / name for name in ("best.pt", "config.yaml")}


def test_the_id_survives_a_resume(run_dir: Path) -> None:
    track(run_dir, range(5), exit_code=130)
    _, notes = track(run_dir, range(5, 9), settings=replace(SETTINGS, group="chosen"))
    assert "/wandb/offline-run-*-a1b2c3" in notes[0]
    first, second = (wandb_file.read(file) for file in wandb_file.files(run_dir))
    assert (first.run["run_id"], first.exit_code) == ("a1b2c3", 130)
    assert (second.run["run_id"], second.exit_code) == ("a1b2c3", 0)
    assert second.run["run_group"] == "chosen"
    steps = [row["step"] for row in first.history + second.history if "train/loss" in row]
    assert steps == list(range(9))


def test_an_interrupt_of_the_whole_process_group_is_recorded(run_dir: Path) -> None:
    script = f"""
import signal, time
from pathlib import Path
from metarun.track.wandb import Wandb, WandbConfig, Identity
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
tracker = Wandb({SETTINGS!r}, {IDENTITY!r}, Path({str(run_dir)!r}), {{}}, lambda text: None)
step = 0
while not asked:
    tracker.log(step, {{"train/loss": 1.0}})
    step += 1
    time.sleep(0.01)
tracker.close(130)
"""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not wandb_file.files(run_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")
    kept = only(run_dir)
    assert kept.exit_code == 130
    assert kept.history


def test_a_folder_that_cannot_be_made_costs_one_note(run_dir: Path) -> None:
    (run_dir / "wandb").touch()
    tracker, notes = track(run_dir, range(3))
    assert not tracker.lost
    assert len(notes) == 1
    assert "left out from here on" in notes[0]


def test_a_full_disk_costs_one_note(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(run_dir)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        notes: list[str] = []
        tracker = Wandb(SETTINGS, IDENTITY, run_dir, CONFIG, keep_in(notes))
        for step in range(2000):
            tracker.log(step, {"train/loss": 1.0})
        tracker.close(0)
    finally:
        subprocess.run(["umount", "--lazy", str(run_dir)], check=True)
    assert not tracker.lost
    assert len(notes) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_crash_inside_wandb_costs_one_note(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Run, "log", full)
    tracker, notes = track(run_dir, range(50))
    assert not tracker.lost
    assert notes == ["W&B: failed, and is left out from here on ([Errno 28] No space left on device)"]
    assert only(run_dir).exit_code == 0


def test_a_hanging_wandb_is_given_up(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: release.wait(20) and sys.exit("late"))
    start = time.monotonic()
    tracker, notes = track(run_dir, range(1000), settings=replace(SETTINGS, finish_timeout_s=0.3))
    took_s = time.monotonic() - start
    release.set()
    tracker._thread.join(10)
    assert tracker.lost
    assert took_s < 2
    assert "wandb sync" in notes[0]


@contextmanager
def silent_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_unreachable_server_means_offline_at_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    _, notes = track(run_dir, range(4), settings=replace(SETTINGS, mode="online", init_timeout_s=60))
    assert time.monotonic() - start < 15
    assert "server not reached" in notes[0]
    assert "wandb sync" in notes[1]
    assert len(only(run_dir).history) == 6


def test_a_server_that_never_answers_means_offline(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with silent_server() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tracker, notes = track(run_dir, range(4))
    assert not tracker.lost
    assert any("server not reached" in note for note in notes)
    offline = next(file for file in wandb_file.files(run_dir) if "offline-run" in str(file))
    assert len(wandb_file.read(offline).history) == 6


def test_without_a_key_nobody_is_asked(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    _, notes = track(run_dir, range(1), exit_code=1, settings=replace(SETTINGS, mode="online"))
    assert ["no API key" in note for note in notes] == [True, False]
    assert only(run_dir).exit_code == 1


def test_wandb_mode_disabled_leaves_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    _, notes = track(run_dir, range(3), exit_code=1)
    assert notes == []
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("base_url", "host", "found"),
    [
        (None, "api.wandb.ai", True),
        ("https://wandb.example.org", "wandb.example.org", True),
        ("https://wandb.example.org", "api.wandb.ai", False),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        (None, "elsewhere.example.org", False),
    ],
)
def test_the_key_is_looked_up_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str | None, host: str, found: bool
) -> None:
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    server = wandb.Settings(base_url=base_url) if base_url else wandb.Settings()
    assert _api_key(server) == (KEY if found else None)


@pytest.mark.parametrize("text", [None, "machine", "machine api.wandb.ai login user password\n"])
def test_a_missing_or_broken_netrc_is_no_key(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "netrc").write_text(text)
    assert _api_key(wandb.Settings()) is None


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password other\n")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert _api_key(wandb.Settings()) == KEY


def test_a_timeout_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="init_timeout_s=0"):
        replace(SETTINGS, init_timeout_s=0.0)
    with pytest.raises(ValueError, match="finish_timeout_s=0"):
        replace(SETTINGS, finish_timeout_s=0.0)
