"""Whole runs on two ranks: the numbers of one process, the same signals, and an end for all when one of them ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.cli.main import main
from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.run.build import prepare
from metarun.run.checkpoint import read_checkpoint
from metarun.run.execution import MetaStepTimer, open_choices
from metarun.train.interrupt import Interrupted, Stop
from support import small
from support.runs import TINY, only_run, outcome, rows, start, wait_until

CLOSE = 1e-6  # float32, after a run
RUNS = [*TINY, "train.meta_batch=3", "optim=sgd", "optim.lr=0.05"]  # Adam makes much of little at first
LONG = [*TINY, "train.steps=150", "train.log_every=1", "train.save_every=20", "eval.every=1000", "devices=cpu:2"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def assert_same_result(one: Path, two: Path) -> None:
    a, b = (torch.load(run / "last.pt", weights_only=True)["meta"] for run in (one, two))
    assert a.keys() == b.keys()
    for group in a:
        assert small.distance(a[group], b[group]) < CLOSE
    of_one, of_two = summary_of(one), summary_of(two)
    assert of_one.keys() == of_two.keys()
    for name, value in of_one.items():
        if name.startswith(("test/", "val/", "best_step")):
            assert of_two[name] == pytest.approx(value, abs=1e-4), name
    assert (of_one["protocol"]["execution"]["processes"], of_two["protocol"]["execution"]["processes"]) == (1, 2)
    assert of_two["memory/peak_mb"] > of_one["memory/peak_mb"] + 100  # torch alone takes 300 MB of a process


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["algo=maml"],
        pytest.param(["algo=protonet", "algo.bn=running"], marks=pytest.mark.slow),
        pytest.param(["algo=reptile", "algo.test_steps=3", "optim=sgd"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_run_of_two_is_a_run_of_one(words: list[str], alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, devices in (("one", "1"), ("two", "cpu:2")):
        assert main([*RUNS, *words, f"devices={devices}", f"out={out}"]) == 0, capsys.readouterr().err
    one, two = (only_run(alone / out) for out in ("one", "two"))
    assert one.relative_to(alone / "one") == two.relative_to(alone / "two")  # the same experiment
    assert_same_result(one, two)
    plan = json.loads((two / "plan.json").read_text())
    assert (plan["processes"], plan["threads"]) == (2, 1)


@pytest.mark.slow
def test_torchrun_starts_the_ranks(alone: Path) -> None:
    assert main([*RUNS, "devices=1", "out=one"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "metarun"]
    done = subprocess.run(
        [*launcher, *RUNS, "out=two"],
        cwd=alone,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("step 12/12  val acc") == 1, done.stdout
    assert_same_result(only_run(alone / "one"), only_run(alone / "two"))


@linux
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_saves_and_ends_all(number: signal.Signals, code: int, alone: Path) -> None:
    going = start([*LONG, "train.save_every=1000", "out=stopped"], alone)
    wait_until(lambda: rows(alone / "stopped") >= 5, going)
    others = children(going.pid)
    for pid in (*others, going.pid):  # as a terminal and a queueing system do it
        os.kill(pid, number)
    said = going.communicate(timeout=60)[0]
    assert going.returncode == code, said
    assert f"{number.name}: saved at step" in said
    assert "Traceback" not in said
    assert others
    all_gone(others)
    assert 0 < read_checkpoint(only_run(alone / "stopped") / "last.pt", torch.device("cpu"))["step"] < 150


@linux
def test_a_killed_rank_ends_all_and_the_same_command_goes_on_bitwise(alone: Path) -> None:
    """First rank 1, then rank 0, which says nothing any more; at other moments every time."""
    moment = random.Random()
    going = start([*LONG, "out=killed"], alone)
    wait_until(lambda: rows(alone / "killed") >= 22, going)
    time.sleep(moment.uniform(0, 0.3))
    others = ranks_of(going.pid)
    os.kill(others[0], signal.SIGKILL)
    said = going.communicate(timeout=60)[0]
    assert going.returncode == 1, said
    line = (
        "metarun: devices: rank 1 ended (SIGKILL), for want of memory perhaps; the same command goes on from the last"
    )
    assert said.count(line) == 1, said
    assert "Traceback" not in said
    all_gone(others)
    before = rows(alone / "killed")
    going = start([*LONG, "out=killed"], alone)
    wait_until(lambda: rows(alone / "killed") not in (0, before), going)
    time.sleep(moment.uniform(0, 0.3))
    others = ranks_of(going.pid)
    going.kill()
    going.communicate(timeout=60)
    all_gone(others)
    for out in ("killed", "whole"):
        going = start([*LONG, f"out={out}"], alone)
        said = going.communicate(timeout=200)[0]
        assert going.returncode == 0, said
    assert outcome(only_run(alone / "killed")) == outcome(only_run(alone / "whole"))


@pytest.mark.slow
def test_another_number_of_ranks_goes_on(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RUNS, "train.log_every=1", "train.save_every=1", "train.steps=60", "out=two"]
    going = start([*words, "devices=1"], alone)
    wait_until(lambda: rows(alone / "two") >= 3, going)
    going.kill()
    going.communicate(timeout=60)
    capsys.readouterr()
    assert main([*words, "devices=cpu:2"]) == 0
    assert "begun by 1 process and goes on with 2" in capsys.readouterr().out
    assert main([*words[:-1], "devices=1", "out=whole"]) == 0
    assert_same_result(only_run(alone / "whole"), only_run(alone / "two"))


@pytest.mark.slow
def test_a_step_is_measured_on_two_ranks_and_can_be_stopped() -> None:
    composed = compose([*RUNS, "devices=auto"])
    config, stop = check_config(composed.plain, composed.choices), Stop()
    parts = prepare(config, lambda _: None)
    timer = MetaStepTimer(config, parts, open_choices(config, begun=False), stop)
    first_s, step_s = timer.seconds({"compile": "off"}, 2)
    assert min(first_s, step_s) > 0
    stop.asked = signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGTERM"):
        timer.seconds({"compile": "off"}, 2)


def children(of: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == of and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def ranks_of(of: int) -> list[int]:
    return [child for child in children(of) if b"launch_ranks" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.05)
