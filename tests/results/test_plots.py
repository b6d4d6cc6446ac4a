"""Pictures show what the numbers say, and the same numbers give the same bytes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metarun.results import plots

Array = NDArray[Any]
GREEN, VERMILION = (0, 158, 115), (213, 94, 0)


def write(path: Path, rows: list[dict[str, float | None]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training(measure: str) -> list[dict[str, float | None]]:
    rows: list[dict[str, float | None]] = []
    for step in range(1, 101):
        rows.append({"step": step, "train/loss": 4 / step, f"train/{measure}": 0.5, "train/lr": 0.1})
        if step % 25 == 0:
            rows.append({"step": step, f"val/{measure}": 1 / step, "val/ci95": 0.001})
    return rows


def pixels_of(path: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB"))
    return int((array == np.array(colour)).all(-1).sum())


def shown(ways: int, shots: int, queries: int, wrong: int, channels: int = 1) -> plots.ClassifiedEpisode:
    rng = np.random.default_rng(0)
    support_y, query_y = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)
    predicted = query_y.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % ways
    support_x, query_x = (rng.integers(0, 256, (len(y), channels, 8, 8)).astype(np.uint8) for y in (support_y, query_y))
    return plots.ClassifiedEpisode(support_x, support_y, query_x, query_y, predicted)


def fit() -> plots.RegressionCurves:
    x, grid = np.linspace(-4, 4, 5)[:, None], np.linspace(-5, 5, 50)[:, None]
    return plots.RegressionCurves(x, np.sin(x), grid, np.sin(grid), 0 * grid, 0.9 * np.sin(grid))


@pytest.mark.parametrize("measure", ["acc", "mse"])
def test_curves_come_as_png_and_svg_and_twice_the_same(tmp_path: Path, measure: str) -> None:
    metrics = write(tmp_path / "m.jsonl", training(measure))
    png, svg = plots.curves(metrics, tmp_path / "curves")
    assert (png, svg) == (tmp_path / "curves.png", tmp_path / "curves.svg")
    again = plots.curves(metrics, tmp_path / "again")
    assert [png.read_bytes(), svg.read_bytes()] == [path.read_bytes() for path in again]
    text = svg.read_text()
    best = {"acc": "best 4.00 %", "mse": "best 0.0100"}[measure]  # the highest of 1/25 ... 1/100, or the lowest
    assert f"<!-- {best} -->" in text
    assert "<!-- 95 % CI -->" in text


def test_a_run_without_validations_or_with_missing_values_is_drawn(tmp_path: Path) -> None:
    rows: list[dict[str, float | None]] = [{"step": 1, "train/loss": 1.0, "val/ci95": None}]
    for name, some in (("few", rows), ("none", [])):
        png, _ = plots.curves(write(tmp_path / f"{name}.jsonl", some), tmp_path / name)
        assert png.stat().st_size > 0


def test_a_name_with_a_dot_keeps_it(tmp_path: Path) -> None:
    png, _ = plots.curves(write(tmp_path / "m.jsonl", training("acc")), tmp_path / "lr0.4")
    assert png.name == "lr0.4.png"


@pytest.mark.parametrize("length", [1, 2, 30, 400])
def test_smoothing_keeps_constants_lines_and_the_first_point(length: int) -> None:
    line = 3.0 + 0.5 * np.arange(length)
    assert plots._smooth(np.full(length, 2.0)) == pytest.approx(2.0)
    smooth = plots._smooth(line)
    whole = int(plots.SMOOTH_SHARE * length / 2)
    assert smooth[: length - whole] == pytest.approx(line[: length - whole])
    assert smooth.shape == line.shape


def test_smoothing_lowers_noise() -> None:
    noise = np.random.default_rng(0).normal(size=2000)
    assert plots._smooth(noise)[50:].std() < 0.2 * noise.std()


def test_wrong_queries_and_right_ones_are_framed_apart(tmp_path: Path) -> None:
    counts = []
    for wrong in (0, 2, 15):
        path = plots.episodes([shown(5, 1, 3, wrong)], tmp_path / f"{wrong}.png")
        counts.append((pixels_of(path, GREEN), pixels_of(path, VERMILION)))
    greens, vermilions = zip(*counts, strict=True)
    assert list(greens) == sorted(greens, reverse=True)
    assert list(vermilions) == sorted(vermilions)
    assert len(set(greens)) == len(set(vermilions)) == 3


@pytest.mark.parametrize(("ways", "shots", "queries", "channels"), [(2, 1, 1, 1), (20, 5, 15, 3), (5, 1, 15, 1)])
def test_episodes_of_any_shape_fit_and_repeat(
    tmp_path: Path, ways: int, shots: int, queries: int, channels: int
) -> None:
    some = [shown(ways, shots, queries, 1, channels), shown(ways, shots, queries, 0, channels)]
    first = plots.episodes(some, tmp_path / "a.png")
    second = plots.episodes([plots.ClassifiedEpisode(*one) for one in map(tuple, some)], tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert max(picture.size) < 4000


def test_regression_does_not_depend_on_the_order_of_the_grid(tmp_path: Path) -> None:
    one = fit()
    mixed = np.random.default_rng(0).permutation(len(one.x_grid))
    assert one.before_y is not None
    grid = (part[mixed] for part in (one.x_grid, one.true_y, one.before_y, one.after_y))
    first = plots.regression([one], tmp_path / "a.png")
    second = plots.regression([plots.RegressionCurves(one.support_x, one.support_y, *grid)], tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()


def test_regression_without_a_curve_before(tmp_path: Path) -> None:
    known, unknown = fit(), fit()._replace(before_y=None)
    first = plots.regression([known], tmp_path / "a.png")
    second = plots.regression([unknown], tmp_path / "b.png")
    assert first.read_bytes() != second.read_bytes()


def test_drawing_in_another_thread_leaves_the_settings_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    thread = threading.Thread(target=plots.regression, args=([fit()], tmp_path / "a.png"))
    thread.start()
    thread.join()
    assert (tmp_path / "a.png").exists()
    assert dict(matplotlib.rcParams) == before
