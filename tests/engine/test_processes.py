"""Several processes do what one does: the same numbers, the same signals, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from metarun.cli.main import main
from metarun.engine.loop import Loop
from metarun.engine.processes import Post, shared
from metarun.errors import RunError
from metarun.models.functional import FunctionalNet
from metarun.run.checkpoint import read_checkpoint
from metarun.types import Engine
from support import small
from support.runs import TINY, only_run, outcome, rows, start, wait_until

EXACT = 1e-12  # float64, relative
CLOSE = 1e-6  # float32, after a run
NET = "conv4-pooled"


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    """One pool for each algorithm, three processes each."""
    net, _ = small.network(NET)
    with (
        shared(3, Loop(), small.ALGOS["maml"]("running"), net, "auto") as maml,
        shared(3, Loop(), small.ALGOS["protonet"]("running"), net, "auto") as protonet,
        shared(3, Loop(), small.ALGOS["reptile"]("support"), net, "auto") as reptile,
    ):
        yield {"maml": maml, "protonet": protonet, "reptile": reptile}


@pytest.mark.parametrize(("name", "bn"), [("maml", "running"), ("protonet", "running"), ("reptile", "support")])
@pytest.mark.parametrize("tasks", [7, 3, 1])
def test_one_meta_step_is_that_of_one_process(engines: dict[str, Engine], name: str, bn: str, tasks: int) -> None:
    net, weights = small.network(NET)
    algo = small.ALGOS[name](bn)
    alone, meta = Loop().build(algo, net), small.grown(algo.init(net, weights, small.SEED))
    episode = small.episodes(NET, tasks=tasks)
    grads, aux = engines[name].meta_grad(meta, episode, 1)
    expected, beside = alone.meta_grad(meta, episode, 1)
    assert grads.keys() == expected.keys()
    for group in expected:
        assert small.distance(grads[group], expected[group]) < EXACT
    assert small.distance(aux.buffers, beside.buffers) < EXACT
    assert small.distance(aux.metrics, beside.metrics) < EXACT
    scores = engines[name].scores(meta, episode)
    assert torch.equal(scores, alone.scores(meta, episode))


def test_what_a_message_brings_is_what_was_sent() -> None:
    ours, theirs = torch.multiprocessing.get_context("spawn").Pipe()
    here, there = Post(ours), Post(theirs)
    dice = torch.Generator().manual_seed(0)
    for size in (3, 1000, 5):  # the buffer grows, and is used again
        tree = {
            "a": torch.randn(size, 2, generator=dice).double().T,  # not contiguous
            "b": [torch.randint(9, (size,), generator=dice), torch.tensor(True)],
            "c": (torch.zeros(0, 4), torch.randn(size, generator=dice).bfloat16()),
        }
        here.send("word", tree)
        word, found = there.receive()
        assert word == "word"
        for sent, came in zip(tree_leaves(tree), tree_leaves(found), strict=True):
            assert sent.dtype == came.dtype
            assert torch.equal(sent, came)


class Sick(Loop):
    def build(self, algo: Any, net: Any) -> Engine:
        def fails(*_: Any) -> Any:
            raise ValueError("two\nlines")

        return Engine(fails, fails) if torch.multiprocessing.parent_process() else super().build(algo, net)


def test_what_fails_in_a_worker_is_told_in_a_line() -> None:
    net, weights = small.network("mlp")
    algo = small.ALGOS["maml"]("batch")
    meta = algo.init(net, weights, small.SEED)
    with (
        pytest.raises(RunError, match=r"^devices: a worker process failed \(ValueError: two\)$"),
        shared(2, Sick(), algo, net, "auto") as engine,
    ):
        engine.meta_grad(meta, small.episodes("mlp"), 0)


def test_a_model_that_cannot_travel() -> None:
    class Local(nn.Linear):
        """Known to this function alone."""

    net, _ = small.network("mlp")
    local = FunctionalNet(Local(2, 2), 0.0, (), ())  # type: ignore[arg-type]  # as good as any here
    with (
        pytest.raises(RunError, match=r"cannot be sent to another process .*; set devices=1"),
        shared(2, Loop(), small.ALGOS["maml"]("batch"), local, "auto"),
    ):
        pass
    assert isinstance(net, FunctionalNet)


RUNS = [*TINY, "train.meta_batch=3", "optim=sgd", "optim.lr=0.05"]  # Adam makes much of little at first


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
    a, b = (torch.load(run / "last.pt", weights_only=True)["meta"] for run in (one, two))
    assert a.keys() == b.keys()
    for group in a:
        assert small.distance(a[group], b[group]) < CLOSE
    plan = json.loads((two / "plan.json").read_text())
    assert (plan["processes"], plan["threads"]) == (2, 1)
    summary = json.loads((two / "summary.json").read_text())
    assert summary["protocol"]["execution"]["processes"] == 2


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


def workers(of: int) -> list[int]:
    return [child for child in children(of) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LONG = [*TINY, "train.steps=150", "train.log_every=1", "train.save_every=1000", "eval.every=1000", "devices=cpu:2"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_saves_ends_all_and_the_run_goes_on_bitwise(
    number: signal.Signals, code: int, alone: Path
) -> None:
    going = start([*LONG, "out=stopped"], alone)
    wait_until(lambda: rows(alone / "stopped") >= 5, going)
    helpers = children(going.pid)
    for pid in (*helpers, going.pid):  # as a terminal and a queueing system do it
        os.kill(pid, number)
    said = going.communicate(timeout=60)[0]
    assert going.returncode == code, said
    assert f"{number.name}: saved at step" in said
    assert "Traceback" not in said
    assert helpers
    _all_gone(helpers)
    if number == signal.SIGTERM:
        return
    run = only_run(alone / "stopped")
    assert 0 < read_checkpoint(run / "last.pt", torch.device("cpu"))["step"] < 150
    for out in ("stopped", "whole"):
        again = start([*LONG, f"out={out}"], alone)
        said = again.communicate(timeout=120)[0]
        assert again.returncode == 0, said
    assert outcome(run) == outcome(only_run(alone / "whole"))


@linux
def test_a_killed_worker_ends_the_run_in_a_line(alone: Path) -> None:
    going = start(LONG, alone)
    wait_until(lambda: rows(alone / "outputs") >= 3, going)
    helpers = children(going.pid)
    os.kill(workers(going.pid)[0], signal.SIGKILL)
    said = going.communicate(timeout=60)[0]
    assert going.returncode == 1, said
    assert "metarun: devices: a worker process ended (SIGKILL), for want of memory perhaps; the same command" in said
    assert "Traceback" not in said
    _all_gone(helpers)


@linux
def test_a_killed_run_leaves_no_worker(alone: Path) -> None:
    going = start(LONG, alone)
    wait_until(lambda: rows(alone / "outputs") >= 3, going)
    helpers = children(going.pid)
    assert workers(going.pid)
    going.kill()
    going.communicate(timeout=60)
    _all_gone(helpers)


def _all_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("devices=cpu", "devices=cpu: use auto, 1, or cpu:NUMBER"),
        ("devices=2", "devices=2: use auto, 1, or cpu:NUMBER"),
        ("devices=cpu:0", "devices=cpu:0: use auto, 1, or cpu:NUMBER"),
        ("devices=null", "devices=None: use auto, 1, or cpu:NUMBER"),
        ("allocator=on", "allocator=on: no such choice"),
    ],
)
def test_other_choices_are_refused(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, word]) == 2
    assert said in capsys.readouterr().err
