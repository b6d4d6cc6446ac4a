"""Shows a run on the console: a live panel on a terminal, plain lines elsewhere, and a table of the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metarun.measures import Measure, measures_for, primary_among

if TYPE_CHECKING:
    from metarun.types import Artifacts

LIVE_PER_S = 4
PLAIN_EVERY_S = 2.0
PLAIN_WIDTH = 1000  # in columns: wide enough that no line is folded in a file or pipe


@dataclass
class RunProgress:
    """The latest step and metrics of a run, and what is computed from them for display."""

    total_steps: int
    measure: Measure
    step: int
    best: tuple[float, int] | None
    metrics: dict[str, float] = field(default_factory=dict)
    phase: tuple[str, int, int] | None = None
    first: tuple[float, int] | None = (
        None  # time and step of the first log: the pace is measured from there, without compilation
    )

    def take(self, step: int, metrics: Mapping[str, float], now: float) -> None:
        self.step = step
        self.metrics |= metrics
        if self.first is None:
            self.first = now, step
        value = metrics.get(f"val/{self.measure.name}")
        if value is not None and (self.best is None or self.measure.better(value, self.best[0])):
            self.best = value, step

    def left_s(self, now: float) -> float | None:
        if self.first is None or self.step <= self.first[1]:
            return None
        return (self.total_steps - self.step) * (now - self.first[0]) / (self.step - self.first[1])

    def parts(self, now: float) -> list[str]:
        known = self.metrics
        shown = [f"loss {known['train/loss']:.4f}"] if "train/loss" in known else []
        if f"train/{self.measure.name}" in known:
            shown.append(f"{self.measure.name} {self.measure.text(known[f'train/{self.measure.name}'])}")
        if self.best is not None:
            shown.append(f"val best {self.measure.text(self.best[0])} (step {self.best[1]})")
        if "time/tasks_per_s" in known:
            shown.append(f"{known['time/tasks_per_s']:.0f} tasks/s")
        return shown

    def validation(self) -> str:
        text = self.measure.text(self.metrics[f"val/{self.measure.name}"], self.metrics.get("val/ci95"))
        leads = self.total_steps and self.best and self.best[1] == self.step
        return f"val {self.measure.name} {text}" + ("  best so far" if leads else "")


class Console:
    """A tracker that prints. `best` is the best validation so far of a resumed run: (value, step)."""

    def __init__(
        self,
        title: str,
        total_steps: int,
        start_step: int,
        measure: Measure,
        stream: TextIO | None = None,
        best: tuple[float, int] | None = None,
    ) -> None:
        self._title, self._progress = title, RunProgress(total_steps, measure, start_step, best)
        self._console = rich_console(stream)
        self._spoke = self._phase_since = float("-inf")
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._panel, console=self._console, refresh_per_second=LIVE_PER_S, transient=True
            )
            self._live.start()
            self._console.show_cursor(True)  # a killed run cannot show it again
        else:
            self.note(f"{title}: step {start_step} of {total_steps}" if total_steps else title)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._progress.take(step, metrics, time.monotonic())
        self._progress.phase = None
        if self._live is None:
            validated = f"val/{self._progress.measure.name}" in metrics
            last = step == self._progress.total_steps
            self._speak(self._line(validated), since=float("-inf") if validated or last else self._spoke)

    def tick(self, phase: str, done: int, total: int) -> None:
        """Shows the progress of a phase other than training: data, meta-validate, meta-test."""
        before, self._progress.phase = self._progress.phase, (phase, done, total) if done < total else None
        if before is None or before[0] != phase:
            self._phase_since = time.monotonic()  # a short phase prints no line
        if self._live is None and done < total:
            self._speak(f"{phase} {done}/{total}", since=max(self._spoke, self._phase_since))

    def note(self, text: str) -> None:
        with suppress(OSError):  # a closed terminal must not end the run
            self._console.print(Text(text), soft_wrap=True)

    def finish(self, summary: Mapping[str, object], artifacts: Artifacts) -> None:
        self._stop()
        with suppress(OSError):
            self._console.print(result_table(summary, artifacts.config.parent))

    def close(self, exit_code: int) -> None:
        unfinished = self._live is not None
        self._stop()
        if unfinished and self._progress.total_steps:
            self.note(self._line(validated=False))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _speak(self, line: str, since: float) -> None:
        now = time.monotonic()
        if now - since >= PLAIN_EVERY_S:
            self._spoke = now
            self.note(line)

    def _line(self, validated: bool) -> str:
        now, progress = time.monotonic(), self._progress
        width = len(str(progress.total_steps))
        parts = [progress.validation()] if validated else [*progress.parts(now), *self._left(now)]
        at = [f"step {progress.step:>{width}}/{progress.total_steps}"] if progress.total_steps else []
        return "  ".join([*at, *parts])

    def _left(self, now: float) -> list[str]:
        left = self._progress.left_s(now)
        return [] if left is None or left <= 0 else [f"{duration_text(left)} left"]

    def _panel(self) -> Panel:
        now, progress = time.monotonic(), self._progress
        name, done, total = progress.phase or ("step", progress.step, progress.total_steps)
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_row(f"{name} {done}/{total}", ProgressBar(total=max(total, 1), completed=done), *self._left(now))
        rows = Table.grid(expand=True)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        rows.add_row(bar)
        rows.add_row(Text("   ".join(progress.parts(now)) or "starting"))
        width = self._console.width - len("^C") - 1  # the terminal echoes ^C, which must not wrap to a new line
        return Panel(rows, title=Text(self._title), title_align="left", border_style="dim", width=width)


class PipeTolerantConsole(RichConsole):
    """Stops printing when the reading end of a pipe is closed (| head); rich would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if self.file is sys.stdout:  # else Python would fail to flush the buffer at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rich_console(stream: TextIO | None = None) -> RichConsole:
    """A console with colours on a terminal; in files and pipes without control characters, even under FORCE_COLOR."""
    stream = stream or sys.stdout
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return PipeTolerantConsole(file=stream, force_terminal=True, highlight=False)
    return PipeTolerantConsole(
        file=stream,
        force_terminal=False,
        force_interactive=False,
        color_system=None,
        width=PLAIN_WIDTH,
        legacy_windows=False,
        highlight=False,
    )


def say(text: str) -> None:
    """Prints one line to standard output."""
    rich_console().print(Text(text), soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table. Columns of numbers are right-aligned; the widest column is folded to fit the terminal."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    cells = list(zip(*rows, strict=True))
    longest = max(range(len(columns)), key=lambda number: max(map(len, cells[number]), default=0)) if rows else 0
    for number, name in enumerate(columns):
        numeric = bool(rows) and all(cell[:1].isdigit() for cell in cells[number] if cell)
        table.add_column(name, no_wrap=number != longest, overflow="fold", justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    rich_console().print(table)


def show_result(summary: Mapping[str, object], run_dir: Path) -> None:
    rich_console().print(result_table(summary, run_dir))


def result_table(summary: Mapping[str, object], run_dir: Path) -> Table:
    """The result of a finished run as a table, made from its summary."""
    table = Table(box=box.ROUNDED, show_header=False, title="Result", title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _result_rows(summary, run_dir):
        table.add_row(name, Text(text, style="bold" if name.startswith("test") else ""))
    return table


def _result_rows(summary: Mapping[str, object], run_dir: Path) -> list[tuple[str, str]]:
    primary = primary_among(summary, "test")
    assert primary is not None, f"{run_dir}: the summary has no score"
    tested = _measured(summary, primary, f"test/{primary.name}", "test/ci95")
    rows = [(f"test {primary.title}", f"{tested} ({summary['test/episodes']} episodes)")]
    start = f"test/{primary.name}_"
    for source in (key.removeprefix(start) for key in summary if key.startswith(start)):  # of a mixture
        rows.append((f"  {source}", _measured(summary, primary, start + source, f"test/ci95_{source}")))
    for measure in measures_for(primary.kind)[1:]:
        name = f"test/{measure.name}"
        if name in summary:  # summaries of earlier versions have fewer measures
            rows.append((f"test {measure.title}", _measured(summary, measure, name, f"{name}_ci95")))
    if f"val/best_{primary.name}" in summary:
        best = _measured(summary, primary, f"val/best_{primary.name}", "")
        rows.append(("val best", f"{best} (step {summary['best_step']})"))
    protocol = summary.get("protocol", {})
    assert isinstance(protocol, Mapping), f"{run_dir}: protocol={protocol}"
    rows += _protocol_rows(protocol)
    if "time/total_s" in summary:
        rows.append(("time", duration_text(_number(summary, "time/total_s"))))
    if summary.get("time/tasks_per_s"):  # 0 in a run of no steps
        rows.append(("tasks/s", f"{_number(summary, 'time/tasks_per_s'):.0f}"))
    rows.append(("run directory", shortest_path(run_dir)))
    named = (("checkpoint", "best.pt"), ("curves", "curves.png"), ("test episodes", "episodes.png"))
    return rows + [(name, shortest_path(run_dir / file)) for name, file in named if (run_dir / file).exists()]


def _measured(summary: Mapping[str, object], measure: Measure, name: str, interval_name: str) -> str:
    ci95 = _number(summary, interval_name) if interval_name in summary else None
    return measure.text(_number(summary, name), ci95)


def _number(summary: Mapping[str, object], name: str) -> float:
    value = summary[name]
    assert isinstance(value, int | float), f"{name}={value!r} is no number"
    return value


def _protocol_rows(protocol: Mapping[str, object]) -> list[tuple[str, str]]:
    rows = {name: protocol.get(key) for name, key in (("batch norm", "bn"), ("steps", "steps"), ("seed", "seed"))}
    if "ways" in protocol:
        shape = (
            f"{_range_text(protocol['ways'])}-way {_range_text(protocol['shots'])}-shot {protocol['queries']} queries"
        )
        more = {key: protocol.get(key) for key in ("label_noise", "imbalance")}
        said = "".join(f", {key} {value}" for key, value in more.items() if value)
        drawn = "" if protocol.get("sampler", "uniform") == "uniform" else f", {protocol['sampler']}"
        rows = {"task": f"{protocol['data']} {shape}{drawn}{said}", **rows}
    if protocol.get("tf32"):
        rows["products"] = "TF32"
    return [(name, str(value)) for name, value in rows.items() if value is not None]


def _range_text(value: object) -> str:
    """5, or "3 to 10" for a range [3, 10]."""
    return " to ".join(map(str, value)) if isinstance(value, Sequence) else str(value)


def duration_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shortest_path(path: Path) -> str:
    """The absolute path, or the one relative to the working directory if it is shorter."""
    return min(str(path.absolute()), os.path.relpath(path), key=len)
