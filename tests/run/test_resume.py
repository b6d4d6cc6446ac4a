"""Stopped at any moment and taken up again is bitwise the same as never stopped."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from metarun.cli.main import main
from metarun.run.checkpoint import read_checkpoint, save_checkpoint
from metarun.train.state import State
from support.runs import TINY, only_run, outcome, rows, start, wait_until

WORDS = [*TINY, "train.steps=80", "train.save_every=1", "eval.every=20", "train.log_every=1"]


def run_to_end(words: list[str], cwd: Path) -> str:
    """In a process like those that are stopped: another number of threads may round otherwise."""
    going = start(words, cwd)
    said = going.communicate(timeout=300)[0]
    assert going.returncode == 0, said
    return said


@pytest.mark.parametrize("algo", ["maml", pytest.param("protonet", marks=pytest.mark.slow)])
def test_killed_five_times_and_never(algo: str, alone: Path) -> None:
    words = [*WORDS, f"algo={algo}", "algo.bn=running"]
    draw = random.Random()  # other moments every time
    for _ in range(5):
        before = rows(alone / "killed")
        going = start([*words, "out=killed"], alone)
        wait_until(lambda before=before: rows(alone / "killed") != before, going)  # type: ignore[misc]  # bound by default
        time.sleep(draw.uniform(0, 0.8))
        going.kill()
        going.communicate()
        assert going.returncode in (-signal.SIGKILL, 0)
    run_to_end([*words, "out=killed"], alone)
    run_to_end([*words, "out=whole"], alone)
    assert outcome(only_run(alone / "killed")) == outcome(only_run(alone / "whole"))


CHAIN = [
    "train.outer=[{skip_not_finite: 3},{clip_by_norm: 1.0},{accumulate: 4},{moving_average: 0.9}]",
    "eval.weights=average",
]


@pytest.mark.slow
def test_killed_and_never_with_every_outer_transform(alone: Path) -> None:
    """Saved at every step: within accumulated ones too."""
    words = [*WORDS, *CHAIN, "train.steps=100"]
    draw = random.Random()  # other moments every time
    for _ in range(3):
        before = rows(alone / "killed")
        going = start([*words, "out=killed"], alone)
        wait_until(lambda before=before: rows(alone / "killed") != before, going)  # type: ignore[misc]  # bound by default
        time.sleep(draw.uniform(0, 0.4))
        going.kill()
        going.communicate()
        assert going.returncode in (-signal.SIGKILL, 0)
    run_to_end([*words, "out=killed"], alone)
    run_to_end([*words, "out=whole"], alone)
    assert outcome(only_run(alone / "killed")) == outcome(only_run(alone / "whole"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, code: int, alone: Path) -> None:
    words = [*WORDS, "train.save_every=1000", "train.steps=80"]
    going = start([*words, "out=stopped"], alone)
    wait_until(lambda: rows(alone / "stopped") >= 5, going)
    going.send_signal(number)
    said = going.communicate(timeout=60)[0]
    assert going.returncode == code, said
    assert f"{number.name}: saved at step" in said
    assert "The same command goes on from there" in said
    run = only_run(alone / "stopped")
    step = read_checkpoint(run / "last.pt", torch.device("cpu"))["step"]
    assert 0 < step < 80
    said = run_to_end([*words, "out=stopped"], alone)
    assert f"goes on from step {step} of 80" in said
    run_to_end([*words, "out=whole"], alone)
    assert outcome(run) == outcome(only_run(alone / "whole"))


def test_a_second_signal_ends_at_once(alone: Path) -> None:
    slow = [*TINY, "engine=loop", "train.meta_batch=400", "train.save_every=1", "train.log_every=1", "model.width=16"]
    going = start(slow, alone)
    wait_until(lambda: rows(alone / "outputs") >= 1, going)
    time.sleep(0.3)  # into the second step, which takes seconds
    going.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert going.poll() is None, "the first signal waits for the end of the step"
    going.send_signal(signal.SIGINT)
    said = going.communicate(timeout=60)[0]
    assert "saved at step" not in said  # the end of the step, which the first signal waits for, was not awaited
    assert going.returncode == 130
    content = read_checkpoint(only_run(alone / "outputs") / "last.pt", torch.device("cpu"))
    assert content["step"] >= 1


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint at all", None])
def test_a_damaged_checkpoint_is_named(damage: bytes | None, alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    run = only_run(alone / "outputs")
    (run / "summary.json").unlink()
    whole = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert main(TINY) == 1
    err = capsys.readouterr().err
    assert "last.pt: is no checkpoint of metarun, or a damaged one; move it away" in err
    assert len(err.splitlines()) == 1


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(3)
    state = State({"weights": {"w": weight}}, torch.optim.Adam([weight]), step=1)
    save_checkpoint(tmp_path / "last.pt", state, {})
    state.step = 2

    def broken(_: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]  # the file save_checkpoint() opened
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "last.pt", state, {})
    assert read_checkpoint(tmp_path / "last.pt", torch.device("cpu"))["step"] == 1
