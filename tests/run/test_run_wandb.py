"""A whole run with W&B offline: what lies in its file is what the run directory says, through a stop and a resume."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from metarun.cli.main import main
from support import wandb_file
from support.runs import TINY, only_run, rows, start, wait_until

WORDS = [word for word in TINY if not word.startswith("track")] + ["track.mode=offline", "track.tags=[mine]"]


def test_the_file_holds_the_run(alone: Path) -> None:
    assert main(WORDS) == 0
    run = only_run(alone / "outputs")
    (file,) = wandb_file.files(run)
    kept = wandb_file.read(file)
    rows_there = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    history = [row for row in kept.history if "train/loss" in row or "val/acc" in row]
    assert [row["step"] for row in history] == [row["step"] for row in rows_there]
    for ours, theirs in zip(rows_there, history, strict=True):
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value)
    summary = json.loads((run / "summary.json").read_text())
    for name in ("test/acc", "test/ci95", "test/episodes", "val/best_acc", "best_step"):
        assert kept.summary[name] == pytest.approx(summary[name])
    text = json.dumps(kept.records)
    for word in ("curves", "episodes", "best.pt", "config.yaml", "table"):
        assert word in text, word
    assert kept.run["run_group"] == f"{run.parent.parent.name}/{run.parent.name}"
    assert {"maml", "glyphs", "conv4", "5w1s", "mine"} <= set(kept.run["tags"])
    assert kept.exit_code == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    logged = kept.run["config"]["update"]
    assert {name: logged[name] for name in config} == config


def test_a_stopped_run_keeps_its_id(alone: Path) -> None:
    words = [*WORDS, "train.steps=150", "train.log_every=1"]
    going = start(words, alone)
    wait_until(lambda: rows(alone / "outputs") >= 5, going)
    going.send_signal(signal.SIGINT)
    said = going.communicate(timeout=90)[0]
    assert going.returncode == 130, said
    assert "wandb sync" in said
    assert main(words) == 0
    first, second = (wandb_file.read(file) for file in wandb_file.files(only_run(alone / "outputs")))
    assert first.run["run_id"] == second.run["run_id"]
    assert (first.exit_code, second.exit_code) == (130, 0)
    steps = {row["step"] for kept in (first, second) for row in kept.history if "train/loss" in row}
    assert steps == set(range(1, 151))
