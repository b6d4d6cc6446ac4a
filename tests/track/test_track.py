"""Trackers: a resumed metrics file has no seam, the console fits where it is shown, a failure spares the others."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metarun.measures import Measure, primary_measure
from metarun.track import Trackers
from metarun.track.console import Console, RunProgress, duration_text, result_table, rich_console
from metarun.track.jsonl import Jsonl
from metarun.types import Artifacts

ACCURACY, SQUARED_ERROR = primary_measure("classes"), primary_measure("values")
SUMMARY = {
    "test/acc": 0.92314,
    "test/ci95": 0.00518,
    "test/episodes": 600,
    "val/best_acc": 0.93,
    "best_step": 400,
    "protocol": {"data": "glyphs", "ways": 5, "shots": 1, "queries": 15, "bn": None, "steps": 600, "seed": 3},
    "time/total_s": 95.4,
    "time/tasks_per_s": 213.4,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder:
    def __init__(self, calls: list[object], fails: bool) -> None:
        self.calls, self.fails = calls, fails

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append((step, dict(metrics)))

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        self.calls.append(dict(summary))

    def close(self, exit_code: int) -> None:
        self.calls.append(exit_code)
        if self.fails:
            raise OSError("disk")


def artifacts(run_dir: Path) -> Artifacts:
    names = ("curves.png", "episodes.png", "scores.csv", "best.pt", "config.yaml")
    return Artifacts(*(run_dir / name for name in names))


def write(path: Path, offset: int, steps: range) -> int:
    file = Jsonl(path, offset)
    for step in steps:
        file.log(step, {"train/loss": 1 / (step + 3), "time/total_s": 0.1 * step})
    position = file.position()
    file.close(0)
    return position


def test_every_tracker_is_called_in_turn_and_closed_though_another_fails(tmp_path: Path) -> None:
    first: list[object] = []
    second: list[object] = []
    trackers = Trackers((Recorder(first, fails=True), Recorder(second, fails=False)))
    trackers.log(7, {"train/loss": 1.0})
    trackers.finish({"seed": 1}, artifacts(tmp_path))
    with pytest.raises(OSError, match="disk"):
        trackers.close(130)
    assert first == second == [(7, {"train/loss": 1.0}), {"seed": 1}, 130]


@pytest.mark.parametrize("tail", [b"", b'{"step": 5, "tr', b'{"step": 99}\n{"step": 100}\n'])
def test_a_resumed_metrics_file_is_that_of_an_uninterrupted_run(tmp_path: Path, tail: bytes) -> None:
    write(tmp_path / "whole.jsonl", 0, range(10))
    position = write(tmp_path / "resumed.jsonl", 0, range(5))
    with (tmp_path / "resumed.jsonl").open("ab") as file:
        file.write(tail)
    end = write(tmp_path / "resumed.jsonl", position, range(5, 10))
    resumed = (tmp_path / "resumed.jsonl").read_bytes()
    assert resumed == (tmp_path / "whole.jsonl").read_bytes()
    assert end == len(resumed)


def test_a_new_run_drops_an_old_metrics_file(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 0, range(9))
    write(tmp_path / "m.jsonl", 0, range(2))
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1]


def test_each_row_is_on_disk_at_once_and_strict_json(tmp_path: Path) -> None:
    file = Jsonl(tmp_path / "m.jsonl", 0)
    file.log(1, {"val/ci95": float("nan"), "val/acc": 0.5})
    text = (tmp_path / "m.jsonl").read_text()
    file.close(0)
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "val/ci95": None, "val/acc": 0.5}


def test_a_metrics_file_shorter_than_its_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    position = write(tmp_path / "m.jsonl", 0, range(3))
    with pytest.raises(OSError, match=f"{position} bytes.*{position + 1}"):
        Jsonl(tmp_path / "m.jsonl", position + 1)
    assert (tmp_path / "m.jsonl").stat().st_size == position


@pytest.mark.parametrize(
    ("measure", "values", "best"), [(ACCURACY, (0.5, 0.8, 0.7), (0.8, 2)), (SQUARED_ERROR, (0.5, 0.2, 0.3), (0.2, 2))]
)
def test_best_follows_the_measure_and_survives_a_resume(
    measure: Measure, values: tuple[float, ...], best: tuple[float, int]
) -> None:
    progress = RunProgress(9, measure, 0, None)
    for step, value in enumerate(values, start=1):
        progress.take(step, {f"val/{measure.name}": value}, now=float(step))
    assert progress.best == best
    resumed = RunProgress(9, measure, 2, best)
    resumed.take(3, {f"val/{measure.name}": values[2]}, now=0.0)
    assert resumed.best == best


def test_time_left_is_the_pace_since_the_first_logged_step() -> None:
    progress = RunProgress(100, ACCURACY, 20, None)
    assert progress.left_s(0.0) is None
    progress.take(30, {}, now=50.0)  # the slow first step
    progress.take(50, {}, now=60.0)
    assert progress.left_s(60.0) == pytest.approx(25.0)


def plain_run(monkeypatch: pytest.MonkeyPatch, step_s: float) -> list[str]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console("maml glyphs", 100, 0, ACCURACY, stream)
    for step in range(1, 101):
        now[0] += step_s
        console.log(step, {"train/loss": 1 / step, "train/acc": step / 100, "time/tasks_per_s": 31.6})
        if step % 50 == 0:
            console.tick("meta-validate", 5, 10)
            console.log(step, {"val/acc": step / 200, "val/ci95": 0.01})
    console.note("a path: " + "x" * 300)
    console.close(0)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("step_s", [0.001, 0.5, 3.0])
def test_without_a_terminal_lines_are_whole_plain_and_rare(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    lines = plain_run(monkeypatch, step_s)
    assert not set("\x1b\r\b") & set("".join(lines))
    assert lines[-1] == "a path: " + "x" * 300
    assert [line for line in lines if "val acc" in line] == [
        "step  50/100  val acc 25.00 +- 1.00 %  best so far",
        "step 100/100  val acc 50.00 +- 1.00 %  best so far",
    ]
    assert len([line for line in lines if "loss" in line]) <= 2 + 100 * step_s / 2.0
    assert "step 100/100  loss 0.0100  acc 100.00 %  val best 25.00 % (step 50)  32 tasks/s" in lines


def test_a_long_phase_speaks_and_a_short_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console("t", 10, 0, ACCURACY, stream)
    for phase, seconds in (("data", 0.125), ("meta-test", 1.0)):
        for done in range(6):
            console.tick(phase, done, 5)
            now[0] += seconds
    assert stream.getvalue().splitlines()[1:] == ["meta-test 2/5", "meta-test 4/5"]


def test_a_terminal_is_given_back() -> None:
    stream = Terminal()
    console = Console("maml", 100, 0, ACCURACY, stream)
    console.log(1, {"train/loss": 1.5})
    console.tick("data", 1, 2)
    time.sleep(0.3)
    console.close(130)
    console.close(130)
    shown = stream.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert shown.endswith("step   1/100  loss 1.5000\n")
    assert "data 1/2" in shown


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    rich_console(stream).print("[red]x[/red]")
    assert stream.getvalue() == "x\n"


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(text)

    console = Console("t", 10, 0, ACCURACY, Gone())
    console.log(10, {"train/loss": 1.0})
    console.finish(SUMMARY, artifacts(tmp_path))
    console.close(0)


def test_logging_to_a_terminal_takes_less_than_a_millisecond() -> None:
    console = Console("t", 10_000, 0, ACCURACY, Terminal())
    begin = time.perf_counter()
    for step in range(1000):
        console.log(step, {"train/loss": 1.0, "train/acc": 0.5})
    took_s = time.perf_counter() - begin
    console.close(0)
    assert took_s < 1.0


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1:00"), (3724.2, "1:02:04"), (0.2, "0:00")])
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_result_names_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "outputs" / "seed3"
    run_dir.mkdir(parents=True)
    (run_dir / "best.pt").touch()
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    console = Console("maml", 600, 600, ACCURACY, stream)
    console.finish(SUMMARY, artifacts(run_dir))
    shown = stream.getvalue()
    for text in (
        "92.31 +- 0.52 % (600 episodes)",
        "93.00 % (step 400)",
        "1:35",
        " outputs/seed3/best.pt ",
        " outputs/seed3 ",
        "glyphs 5-way 1-shot 15 queries",
    ):
        assert text in shown
    assert "curves.png" not in shown
    assert "batch norm" not in shown
    assert str(tmp_path) not in shown
    again = io.StringIO()
    rich_console(again).print(result_table(SUMMARY, run_dir))
    assert again.getvalue() in shown


def test_a_regression_result_is_no_percentage(tmp_path: Path) -> None:
    stream = io.StringIO()
    summary = {"test/mse": 0.51234, "test/ci95": 0.01, "test/episodes": 50, "val/best_mse": 0.4, "best_step": 2}
    rich_console(stream).print(result_table(summary, tmp_path))
    assert "0.5123 +- 0.0100 (50 episodes)" in stream.getvalue()
    assert "%" not in stream.getvalue()
