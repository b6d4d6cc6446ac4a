"""What `auto` chooses: by rule in a short run, by measuring in a long one, once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from metarun.cli.main import main
from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.errors import RunError
from metarun.run import execution
from metarun.run.execution import (
    DecidedFields,
    OpenChoices,
    Plan,
    StepTimer,
    decide,
    fastest,
    open_choices,
    read_plan,
    worth_compiling,
    write_plan,
)
from support.runs import TINY, only_run, outcome

ALL = frozenset({"chunk", "compile", "processes"})
MINUTE = 60.0


class Fake:
    """A machine on which everything takes as long as it says."""

    def __init__(self, clock: list[float], operations: int = 3000, compile_s: float = 30.0, **step_s: float) -> None:
        self.clock, self.operations, self.compile_s, self.step_s = clock, operations, compile_s, step_s
        self.asked: list[tuple[dict[str, Any], int]] = []

    def seconds(self, engine: DecidedFields, processes: int) -> tuple[float, float]:
        self.asked.append((dict(engine), processes))
        compiled = engine.get("compile") == "on"
        if compiled and self.compile_s < 0:
            raise RuntimeError("no compiler\nat all")
        step_s = self.step_s.get(f"chunk{engine['chunk']}" if "chunk" in engine else "auto", 1.0)
        step_s *= self.step_s.get("compiled", 1.0) if compiled else 1.0
        if processes > 1 and self.step_s.get("processes") == 0:
            raise RunError("cannot be sent to another process")
        step_s *= self.step_s.get("processes", 1.0) if processes > 1 else 1.0
        self.clock[0] += 4 * step_s
        return step_s + compiled * self.compile_s, step_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def choices(
    steps: int,
    names: frozenset[str] = ALL,
    meta_batch: int = 16,
    cores: int = 2,
    processes: int = 1,
    threads: int = 2,
) -> OpenChoices:
    return OpenChoices(names, steps, meta_batch, cores, processes, threads)


def made(left: OpenChoices, machine: Fake) -> tuple[Plan, list[str]]:
    said: list[str] = []
    return decide(left, lambda: machine, said.append), said


def never() -> StepTimer:
    raise AssertionError("measured")


def test_a_short_run_measures_nothing() -> None:
    plan = decide(choices(execution.MEASURED_FROM - 1), never, print)
    assert (plan.engine, plan.processes, plan.threads) == ({"compile": "off"}, 1, 2)


def test_nothing_left_open_measures_nothing() -> None:
    plan = decide(choices(60_000, frozenset(), processes=3, threads=1), never, print)
    assert (plan.engine, plan.processes, plan.threads, plan.why) == ({}, 3, 1, {})


def test_a_chunk_is_taken_that_is_clearly_faster(clock: list[float]) -> None:
    plan, _ = made(choices(5000, frozenset({"chunk"})), Fake(clock, auto=0.1, chunk4=0.095, chunk2=0.08, chunk1=0.07))
    assert plan.engine == {"chunk": 1}
    plan, _ = made(choices(5000, frozenset({"chunk"})), Fake(clock, auto=0.1, chunk4=0.095, chunk2=0.096))
    assert plan.engine == {}


def test_chunks_are_measured_in_their_share_of_the_time(clock: list[float]) -> None:
    machine = Fake(clock, auto=0.1, chunk1=0.01)
    plan, _ = made(choices(500, frozenset({"chunk"})), machine)
    assert machine.clock[0] < execution.CHUNK_BUDGET * 500 * 0.1 + 4 * 1.0 + 0.5  # the last one may run over
    assert plan.engine == {}


def test_chunks_above_the_meta_batch_are_not_tried(clock: list[float]) -> None:
    machine = Fake(clock, auto=0.1)
    made(choices(60_000, frozenset({"chunk"}), meta_batch=4), machine)
    assert {engine.get("chunk") for engine, _ in machine.asked} == {None, 4, 2, 1}


@pytest.mark.parametrize(
    ("steps", "step_s", "operations", "chunks", "worth"),
    [
        (5000, 0.0024, 325, 1, False),
        (10_000, 0.0024, 325, 1, True),  # a small net: all time between operations
        (1000, 0.1, 1300, 2, False),
        (1000, 0.1, 2600, 2, False),  # 82 s to compile are more than a twentieth, and the gain is not sure
        (60_000, 0.1, 1300, 2, True),
    ],
)
def test_compiling_pays(steps: int, step_s: float, operations: int, chunks: int, worth: bool) -> None:
    assert worth_compiling(steps, step_s, operations, chunks) is worth


def test_compiled_is_kept_when_it_is_faster(clock: list[float]) -> None:
    plan, said = made(choices(60_000, frozenset({"compile"})), Fake(clock, auto=0.1, compiled=0.5))
    assert plan.engine == {"compile": "on"}
    assert plan.summary_metrics() == {"time/compile_s": 30.0}
    assert said == ["compiled in 30 s: a step takes 50.0 ms, 100.0 ms before"]
    plan, _ = made(choices(60_000, frozenset({"compile"})), Fake(clock, auto=0.1, compiled=0.99))
    assert plan.engine == {"compile": "off"}
    assert plan.summary_metrics() == {"time/compile_s": 30.0}  # it was spent all the same


def test_what_cannot_be_compiled_runs_as_it_is(clock: list[float]) -> None:
    plan, said = made(choices(60_000, frozenset({"compile"})), Fake(clock, auto=0.1, compile_s=-1))
    assert plan.engine == {"compile": "off"}
    assert said == ["engine.compile=auto: cannot be compiled, and runs as it is (RuntimeError: no compiler)"]


def test_processes_are_taken_when_they_are_faster_and_the_run_is_long(clock: list[float]) -> None:
    left = frozenset({"processes"})
    plan, _ = made(choices(5000, left), Fake(clock, auto=0.1, processes=0.7))
    assert (plan.processes, plan.threads) == (2, 1)
    assert plan.why["step_s"] == pytest.approx(0.07)
    plan, _ = made(choices(5000, left), Fake(clock, auto=0.1, processes=0.97))
    assert (plan.processes, plan.threads) == (1, 2)
    plan, _ = made(choices(5000, left), Fake(clock, auto=0.1, processes=0))
    assert (plan.processes, plan.threads) == (1, 2)
    assert plan.why["processes"] == "RunError: cannot be sent to another process"
    for other in (choices(1000, left), choices(5000, left, cores=1), choices(5000, left, meta_batch=1)):
        machine = Fake(clock, auto=0.1, processes=0.1)
        assert made(other, machine)[0].processes == 1
        assert [processes for _, processes in machine.asked] == [1]


def test_all_at_once_build_on_each_other(clock: list[float]) -> None:
    machine = Fake(clock, auto=0.1, chunk4=0.08, compiled=0.5, processes=0.6)
    plan, _ = made(choices(60_000), machine)
    assert (dict(plan.engine), plan.processes) == ({"compile": "on"}, 2)
    assert plan.why["step_s"] == pytest.approx(0.1 * 0.5 * 0.6)


def test_compiled_a_chunk_is_the_rules_unless_it_was_given(clock: list[float]) -> None:
    """The one measured without says nothing about it."""
    machine = Fake(clock, auto=0.1, chunk4=0.08, compiled=0.5)
    assert made(choices(60_000, frozenset({"chunk", "compile"})), machine)[0].engine == {"compile": "on"}
    assert {"compile": "on"} in [dict(engine) for engine, _ in machine.asked]
    assert made(choices(60_000, frozenset({"chunk"})), machine)[0].engine == {"chunk": 4}


def test_the_fastest_of_two_alike_is_the_first() -> None:
    assert fastest({"a": 1.0, "b": 0.95}) == "a"
    assert fastest({"a": 1.0, "b": 0.9, "c": 0.8}) == "c"


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = Plan({"chunk": 4, "compile": "on"}, 2, 1, {"step_s": 0.123, "chunk_s": {"4": 0.1}})
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"engine": 3, "processes": 1, "threads": 1, "why": {}}'])
def test_a_damaged_plan_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RunError, match=r"plan.json: is no plan.json of a run, or a damaged one"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(RunError, match="cannot be read"):
        read_plan(tmp_path / "none.json")


LONG = [
    *TINY,
    "train.steps=500",
    "train.log_every=100",
    "eval.every=250",
    "data=sine",
    "model=mlp",
    "train.save_every=250",
]
SHORT_NET = [word for word in LONG if not word.startswith("model.width")]


def test_a_run_measures_and_another_can_be_told_to_do_the_same(alone: Path) -> None:
    words = [*SHORT_NET, "devices=1"]
    assert main([*words, "out=a"]) == 0
    first = only_run(alone / "a")
    plan = json.loads((first / "plan.json").read_text())
    assert plan["why"]["step_s"] > 0
    assert "chunk_s" in plan["why"]
    assert main([*words, "out=b", f"execution_from={first}/plan.json"]) == 0
    second = only_run(alone / "b")
    assert json.loads((second / "plan.json").read_text())["engine"] == plan["engine"]
    of_a, of_b = outcome(first), outcome(second)
    for name in ("metrics", "summary", "scores"):
        assert of_a[name] == of_b[name]
    executed = json.loads((first / "summary.json").read_text())["protocol"]["execution"]
    assert executed == {**plan["engine"], "processes": 1, "threads": plan["threads"]}


def test_a_plan_goes_before_what_is_measured_and_survives(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "devices=1"]) == 0
    run = only_run(alone / "outputs")
    plan = run / "plan.json"
    before = plan.read_text()
    (run / "summary.json").unlink()
    assert main([*TINY, "devices=cpu:2"]) == 0
    assert "begun by 1 process and goes on with 2; the last digits may differ" in capsys.readouterr().out
    assert plan.read_text() == before
    plan.write_text("{}")
    (run / "summary.json").unlink()
    assert main(TINY) == 1
    assert "plan.json: is no plan.json of a run" in capsys.readouterr().err


def test_a_plan_for_another_engine_is_refused(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(alone / "plan.json", Plan({"chunk": 4}, 1, 1, {}))
    assert main([*TINY, "engine=loop", "execution_from=plan.json"]) == 1
    assert "execution_from=plan.json: has chunk, which engine=loop knows nothing of" in capsys.readouterr().err
    assert main([*TINY, "execution_from=none.json", "seed=1"]) == 1
    assert "execution_from=none.json: cannot be read" in capsys.readouterr().err


def test_where_memory_is_saved_no_chunk_is_looked_for() -> None:
    def left(*words: str) -> frozenset[str]:
        composed = compose([*words, "track=local", "device=cpu"])
        return open_choices(check_config(composed.plain, composed.choices), begun=False).names

    assert left() - left("engine.memory=adjoint") == {"chunk"}
