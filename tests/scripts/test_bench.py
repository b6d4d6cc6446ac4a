"""The bench: only contenders with a correct gradient are timed, and the figures become a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import command, contenders, machine, peak_memory, peer_packages, report, scoring_speed, timing
from bench.peer_loops import MetaGradient, autograd
from bench.unavailable import Unavailable
from bench.workloads import WORKLOADS, Job, Workload, make_job, select_workloads
from metarun.types import Episode, Meta

CPU = torch.device("cpu")
OURS = "vmap,loop"


@pytest.fixture(autouse=True)
def _leaves_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves threads and allocator of the test process as they are, and downloads nothing."""
    monkeypatch.setattr(machine, "keep_pages", lambda _: False)
    monkeypatch.setattr(machine, "set_threads_and_allocator", lambda _: False)
    monkeypatch.setattr(peer_packages, "install_missing", lambda _: None)


def quick_settings(*engines: str) -> timing.TimingSettings:
    return timing.TimingSettings(
        CPU, 1, 2, quick=True, memory=False, engines=list(engines), limit_gflops=100.0, say=lambda _: None
    )


def by_name(row: dict[str, Any]) -> dict[str, Any]:
    return {contender["name"]: contender for contender in row["contenders"]}


def test_the_bench_from_end_to_end(tmp_path: Path) -> None:
    words = ["--only", "W4-1step", "--engines", f"{OURS},autograd,learn2learn", "--quick", "--threads", "1"]
    assert command.main([*words, "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "speed.json").read_text())
    found = by_name(stored["rows"][0])
    assert stored["rows"][0]["tasks"] == 25
    assert set(found) == {"vmap", "loop", "learn2learn", "autograd"}
    for contender in found.values():
        assert contender["status"] == "timed"
        assert contender["gate"] < 1e-10
        assert len(contender["seconds"]) == stored["rounds"] == 2
        assert contender["ratio"] > 0
    assert found["learn2learn"]["ratio"] == 1.0
    # Of convolutions and matrix products: a sine task of 10 points is 20 forward and backward passes of 1,680 weights.
    assert 1e-4 < stored["rows"][0]["gflop_per_task"] < 1e-3
    assert "| W4-1step | vmap |" in (tmp_path / "speed.md").read_text()


def test_a_contender_with_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def one_part_in_a_million(job: Job) -> MetaGradient:
        right = autograd(job)

        def step(episode: Episode) -> Meta:
            calls.append(len(episode.index))
            found = right(episode)
            name = next(iter(found["weights"]))
            return {"weights": {**found["weights"], name: found["weights"][name] * (1 + 1e-6)}}

        return step

    monkeypatch.setitem(contenders.PEERS, "higher", one_part_in_a_million)
    row = timing.time_workload(WORKLOADS["W4-1step"], quick_settings("higher", "loop"))
    found = by_name(row)
    assert found["higher"]["status"] == "wrong"
    assert 1e-8 < found["higher"]["gate"] < 1e-5
    assert "seconds" not in found["higher"]
    assert len(calls) == 1
    assert found["loop"]["status"] == "timed"
    assert "**wrong**, not timed" in "\n".join(report.table([row]))


def test_a_gradient_that_is_missing_is_wrong() -> None:
    job = make_job(WORKLOADS["W1-metasgd"], CPU, torch.float64, 2, quick=True)
    truth = autograd(job)(job.episode)
    assert timing.relative_error(truth, truth) == 0.0
    assert timing.relative_error({"weights": truth["weights"]}, truth) > 0.01


def test_a_contender_that_is_unavailable_or_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_: Job) -> MetaGradient:
        raise Unavailable("not here")

    def breaks(_: Job) -> MetaGradient:
        raise RuntimeError("broke | down\nand more")

    monkeypatch.setitem(contenders.PEERS, "higher", unavailable)
    monkeypatch.setitem(contenders.PEERS, "torchopt", breaks)
    found = by_name(timing.time_workload(WORKLOADS["W4-1step"], quick_settings("higher", "torchopt", "loop")))
    assert found["higher"] == {"name": "higher", "status": "unavailable", "reason": "not here"}
    assert found["torchopt"]["reason"] == "RuntimeError: broke | down"
    assert found["loop"]["status"] == "timed"


@pytest.mark.parametrize("name", ["W1", "W1-fomaml", "W1-metasgd", "W1-protonet", "W3-anil", "W4-5steps", "W5-reptile"])
def test_all_loops_of_the_bench_agree(name: str) -> None:
    job = make_job(WORKLOADS[name], CPU, torch.float64, 2, quick=True)
    truth = autograd(job)(job.episode)
    for contender in ("loop", "learn2learn"):
        entry = timing.check_gradient(contenders.choose(contender, job), job, truth)
        assert entry["status"] == "timed", f"{contender}: {entry}"


def test_a_table_from_stored_figures() -> None:
    stored = json.loads((Path(__file__).parent / "stored_figures.json").read_text())
    row = {"name": "vmap", "total_s": 2.0, "ratio": 3.5, "error": 1e-6}
    text = report.markdown(stored, stored["reached"], {**stored, "overrides": [], "episodes": 600, "rows": [row]})
    lines = text.splitlines()
    assert "| **W4-1step** sine | 30.00 | 1.00 |  | wrong |" in lines
    auto = "| W4-1step | auto (chunk 25, processes 1) |"
    assert f"{auto} 30.00 | 25,000 | 1.0 | 0.9 | 0.9 to 1.1 | 12 | 2.0 % | 6.5 | 2e-16 |" in lines
    assert "| W4-1step | higher | unavailable: not / here |  |  |  |  |  |  |  |  |" in lines
    assert "| metarun | 30.0 | 40 | 95.2 % | 43 |" in lines
    assert "| learn2learn | not within 100 | 20 | 80.0 % | 6 |" in lines
    assert "| vmap | 2.00 | 3.50 | 1e-06 |" in lines
    widths = {line.count("|") for line in lines if line.startswith("| W4-1step |")}
    assert widths == {len(report.HEAD) + 1}


def test_metarun_and_learn2learn_give_the_same_scores() -> None:
    said: list[str] = []
    found = scoring_speed.measure(CPU, quick=True, say=said.append)
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"vmap", "learn2learn"}
    assert 0 < rows["vmap"]["error"] < timing.TOLERANCE
    assert rows["learn2learn"]["ratio"] == 1.0
    assert said[-1] == "scores: 6 of 6 episodes"


def test_outputs_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scoring_speed.learn2learn
    monkeypatch.setattr(scoring_speed, "learn2learn", lambda job: lambda episode: plain(job)(episode) + 1e-9)
    with pytest.raises(SystemExit, match="vmap: outputs in float64 differ"):
        scoring_speed.measure(CPU, quick=True, say=lambda _: None)


def test_workloads_are_chosen_by_name_or_kind() -> None:
    assert [w.name for w in select_workloads(["W4"])] == ["W4-1step", "W4-5steps", "W4-128tasks"]
    assert [w.name for w in select_workloads(["W5-20way"])] == ["W5-20way"]
    assert len(select_workloads([])) == len(WORKLOADS)
    with pytest.raises(SystemExit, match="no such workload"):
        select_workloads(["W9"])
    with pytest.raises(SystemExit, match="no such contender"):
        contenders.names_for("W1", ["jax"])


def test_peak_memory_is_measured_again_for_timed_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"name": "auto", "status": "timed", "memory_mb": 1.0},
        {"name": "vmap", "status": "timed", "memory_mb": 1.0},
        {"name": "learn2learn", "status": "timed", "memory_mb": 1.0},
        {"name": "higher", "status": "unavailable", "reason": "not there"},
    ]
    with pytest.raises(SystemExit, match="no such file"):
        command.main(["memory", "--out", str(tmp_path)])
    stored = {"command": "bench.py", "limit_gflops": 100.0, "rows": [{"workload": "W4-1step", "contenders": rows}]}
    (tmp_path / "speed.json").write_text(json.dumps(stored))
    seen = []

    def peak_mb(workload: Workload, choice: contenders.Choice, *_: Any) -> float:
        seen.append((workload.name, choice.name))
        return 2.0

    monkeypatch.setattr(peak_memory, "peak_mb", peak_mb)
    monkeypatch.setattr(report, "markdown", lambda *_: "")
    assert command.main(["memory", "--engines", "auto,vmap,higher", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "speed.json").read_text())
    found = by_name(again["rows"][0])
    assert again["command"].startswith('bench.py and make bench ARGS="memory --engines')
    assert seen == [("W4-1step", "vmap")]
    assert [found[name].get("memory_mb") for name in ("auto", "vmap", "learn2learn", "higher")] == [1.0, 2.0, 1.0, None]


def test_new_rows_replace_or_join_stored_rows() -> None:
    old, new = ({"workload": name, "made": made} for name, made in (("W5", 1), ("W5", 2)))
    first = {"workload": "W1", "made": 1}
    before = {"command": "bench.py --only W5,W1", "rounds": 9, "rows": [old, first]}
    found = command.merge_rows(before, {"command": "bench.py --add", "rounds": 5, "rows": [new]})
    assert found["rows"] == [first, new]
    assert found["command"] == "bench.py --only W5,W1 and bench.py --add"
    assert found["rounds"] == 5
    assert command.merge_rows(found, {"command": "bench.py --add", "rows": []})["command"] == found["command"]
