"""The command as typed: help at once, verbs, completion, configuration shown with its sources."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarun import __version__
from metarun.cli.main import main
from metarun.config.places import conf_dir, groups

RUN = [sys.executable, "-c", "from metarun.cli.main import console; console()"]


def metarun(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *words], capture_output=True, text=True, env={**os.environ, **extra}, timeout=120)


def test_help_is_one_screen_and_quick_and_does_not_know_torch() -> None:
    start = time.monotonic()
    done = metarun("--help")
    took = time.monotonic() - start
    assert done.returncode == 0
    assert took < 1
    assert len(done.stdout.splitlines()) <= 45
    assert max(map(len, done.stdout.splitlines())) <= 120
    for group in ("algo", "data", "task", "model", "optim", "engine", "train", "eval", "track"):
        assert group in groups()
        for name in groups()[group]:
            assert name in done.stdout
    assert done.stdout.count("\n  metarun ") >= 5
    heavy = "bool({'torch', 'hydra', 'rich'} & {*sys.modules})"
    check = f"import sys; from metarun.cli.main import main; main(['--help']); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL).returncode == 0


def test_version() -> None:
    assert metarun("--version").stdout == f"metarun {__version__}\n"


def test_show_names_where_values_come_from(capsys: pytest.CaptureFixture[str], alone: Path) -> None:
    assert main(["show", "algo=anil", "train.steps=7", "data=glyphs"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert shown["train.steps"].split()[1:] == ["7", "command", "line"]
    assert "conf/algo/anil.yaml:" in shown["algo.inner_lr"]
    assert "conf/train/default.yaml:" in shown["train.meta_batch"]
    assert "conf/run.yaml:" in shown["seed"]
    number = int(shown["algo.inner_lr"].split("anil.yaml:")[1].split()[0])
    assert (conf_dir() / "algo/anil.yaml").read_text().splitlines()[number - 1].startswith("inner_lr:")
    assert list(alone.iterdir()) == []


def test_show_is_what_runs_and_follows_a_data_sets_own_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "data=sine"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "metarun.models.mlp." in shown["model._target_"]
    assert shown["task.shots"].split()[1] == "10"
    assert "conf/tuned/sine_maml.yaml:" in shown["algo.inner_lr"]


def test_completion_is_hydras() -> None:
    assert "complete -o nospace" in metarun("-sc", "install=bash").stdout
    line = "metarun algo=pro"
    done = metarun("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.stdout.split() == ["algo=protonet"]


def test_a_user_adds_a_folder_of_yaml(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (alone / "mine" / "train").mkdir(parents=True)
    text = (conf_dir() / "train" / "default.yaml").read_text().replace("meta_batch: ", "meta_batch: 3 # ")
    (alone / "mine" / "train" / "small.yaml").write_text(text)
    words = ["show", f"hydra.searchpath=[file://{alone}/mine]", "train=small"]
    assert main(words) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert shown["train.meta_batch"].split()[1] == "3"
    assert "mine/train/small.yaml:" in shown["train.meta_batch"]
