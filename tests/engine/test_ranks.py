"""Several ranks compute what one process computes, stop together, and say in one line why one of them failed."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch

from metarun.cli.main import main
from metarun.engine.launch_ranks import started_ranks
from metarun.engine.ranks import OneRank, share_sizes
from metarun.errors import RunError
from metarun.run import build
from support import ranked
from support.runs import TINY
from support.small import distance

EXACT = 1e-12  # float64, relative
SMALL = ["track=local", "task.queries=2", "train.meta_batch=5", "eval.val_episodes=5"]
CONV = [*SMALL, "model.width=4"]
CASES = {
    "episodes": [*CONV, "algo=maml"],
    "running statistics": [*CONV, "algo=maml", "algo.bn=running"],
    "statistics per step": [*CONV, "algo=mamlpp"],
    "batches": [*CONV, "algo=baseline"],
    "regression": [*SMALL, "data=sine", "algo=maml"],
    "shapes that vary": [*CONV, "algo=protonet", "algo.bn=running", "task.shots=[1,3]", "task.train.shots=[1,3]"],
    "implicit gradient": [*CONV, "algo=imaml"],
    "learned weights of a loss": [*CONV, "algo=metaweightnet"],
}


@pytest.mark.parametrize("count", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_compute_what_one_process_computes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DTYPE", torch.float64)
    order = ranked.configs_of(CASES)
    alone = ranked.step_all(OneRank(), order)
    with started_ranks(count, "cpu", "support.ranked:work", order) as ranks:
        together = ranked.step_all(ranks, order)
        steps, known, known_by_itself = ranked.stopped_at(ranks)
    for name, expected in alone.items():
        assert expected["grads"].norm() > 0, name
        for what, value in expected.items():
            assert distance(together[name][what], value) < EXACT, (name, what)
    assert steps == [3.0] * count
    assert known == known_by_itself == signal.SIGTERM


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("support.ranked:fail", r"^devices: rank 1 failed \(ValueError: two\)$"),
        pytest.param(
            "support.nowhere:work",
            r"^devices: rank 1 failed \(ModuleNotFoundError: No module named 'support.nowhere'\)$",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_fails_in_a_rank_is_told_in_a_line(task: str, line: str) -> None:
    with pytest.raises(RunError, match=line), started_ranks(2, "cpu", task, None) as ranks:
        ranks.sum(torch.ones(1))


def test_shares_are_as_equal_as_can_be_and_the_first_is_not_the_larger() -> None:
    assert share_sizes(7, 3) == [2, 2, 3]
    assert share_sizes(8, 3) == [2, 3, 3]
    assert share_sizes(1, 2) == [0, 1]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("devices=cpu", "devices=cpu: use auto, 1, cpu:NUMBER"),
        ("devices=2", "devices=2: use auto, 1, cpu:NUMBER"),
        ("devices=cpu:0", "devices=cpu:0: use auto, 1, cpu:NUMBER"),
        ("devices=null", "devices=None: use auto, 1, cpu:NUMBER"),
        ("allocator=on", "allocator=on: no such choice"),
        ("devices=cpu:3", "train.meta_batch=2: each of 3 processes needs a task"),
    ],
)
def test_other_choices_are_refused(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, word]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "devices", "said"),
    [
        ("cuda", "cpu:2", "devices=cpu:2: is for the CPU, and device=cuda; set devices=1"),
        ("cuda", "cuda:3", "devices=cuda:3: 3 GPUs are needed here, and torch can use 2; use devices=auto"),
        ("cuda:1", "cuda:2", "devices=cuda:2: takes the first 2 GPUs, and device=cuda:1; set device=cuda"),
        ("cpu", "cuda:2", "devices=cuda:2: takes the first 2 GPUs, and device=cpu; set device=cuda"),
    ],
)
def test_devices_that_contradict_are_refused(
    device: str, devices: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main([*TINY, f"device={device}", f"devices={devices}"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "words", "said"),
    [
        ("0", ["devices=cpu:4"], "devices=cpu:4: torchrun has started 3 processes; leave devices out"),
        ("0", ["devices=1"], "devices=1: torchrun has started 3 processes; leave devices out"),
        ("0", [], "train.meta_batch=2: each of 3 processes needs a task"),
        ("2", [], None),  # rank 0 says it
    ],
)
def test_under_torchrun_one_rank_says_what_is_wrong(
    rank: str, words: list[str], said: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([*TINY, *words]) == 2
    captured: Any = capsys.readouterr()
    assert captured.err.count("\n") == (1 if said else 0)
    assert (said or "") in captured.err
