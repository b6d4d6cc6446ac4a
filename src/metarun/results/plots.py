"""Pictures of a run: learning curves, test episodes with predictions, regression curves before and after adaptation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.measures import Measure, primary_among, primary_measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Array = NDArray[Any]

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, VERMILION, GREEN, ORANGE, MID_GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#6B6B6B"
SMOOTH_SHARE = 0.05  # share of a curve's points in the window of its moving average
LOG_RATIO = 20.0  # of highest to lowest value, above which the axis is logarithmic
MAX_WAYS, MAX_SUPPORT, MAX_QUERIES = 5, 5, 4  # most rows, and most images in a row, of an episode's picture
GAP = 0.4  # between support and queries, in widths of an image
CELL_IN = 0.72  # width of an image, in inches
LEGEND_IN = 4.0
WRONG_BOX = {"boxstyle": "square,pad=0.15", "facecolor": VERMILION, "edgecolor": "none"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "metarun",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "font.size": 9,
}


class ClassifiedEpisode(NamedTuple):
    """A test episode with the predicted classes of its queries."""

    support_x: Array  # [S, C, H, W], 0..1 or 0..255
    support_y: Array
    query_x: Array
    query_y: Array
    prediction_y: Array


class RegressionCurves(NamedTuple):
    """A regression task: support points, the true curve, and predictions before and after adaptation."""

    support_x: Array
    support_y: Array
    x_grid: Array
    true_y: Array
    before_y: Array | None  # None: the algorithm predicts nothing without a support set
    after_y: Array


def curves(metrics_jsonl: Path, out_stem: Path) -> tuple[Path, Path]:
    """Draws loss and primary measure over meta-steps as PNG and SVG; returns both paths."""
    series = _series(metrics_jsonl)
    measure = primary_among(series, "val") or primary_measure("classes")
    panels = 2 if "train/loss" in series else 1  # a run of no steps has no loss
    with _figure(4.5 * panels, 3.6) as figure:
        axes = figure.subplots(1, panels, squeeze=False)[0]
        if panels == 2:
            _draw_loss(axes[0], series)
        _draw_measure(axes[-1], series, measure)
        png, svg = (_save(figure, out_stem.with_name(out_stem.name + ending)) for ending in (".png", ".svg"))
        return png, svg


def episodes(shown: Sequence[ClassifiedEpisode], path: Path) -> Path:
    """Draws episodes of images. One row per class: support images, then queries framed green (right) or red (wrong)."""
    tables = [_table(ClassifiedEpisode._make(one)) for one in shown]
    widths = [max(row.width for row in table) for table in tables]
    rows = max(len(table) for table in tables)
    width = max(CELL_IN * (sum(widths) + len(widths)), LEGEND_IN)
    with _figure(width, CELL_IN * (rows + 1.8)) as figure:
        axes = figure.subplots(1, len(tables), width_ratios=widths, squeeze=False)[0]
        for number, (axis, table) in enumerate(zip(axes, tables, strict=True)):
            _draw_episode(axis, table, f"test episode {number}")
        figure.legend(handles=_frames(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return _save(figure, path)


def features(shown: Sequence[ClassifiedEpisode], path: Path) -> Path:
    """Draws episodes of feature vectors by their first two principal components; wrong predictions are crossed."""
    with _figure(max(2.8 * len(shown), LEGEND_IN), 3.2) as figure:
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for number, (axis, one) in enumerate(zip(axes, shown, strict=True)):
            _draw_scatter(axis, ClassifiedEpisode._make(one))
            axis.set_title(f"test episode {number}", fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return _save(figure, path)


def _draw_scatter(axis: Axes, one: ClassifiedEpisode) -> None:
    x = np.concatenate([one.support_x, one.query_x]).astype(np.float64)
    x = x - x.mean(0)
    flat = np.pad(x @ np.linalg.svd(x, full_matrices=False)[2][:2].T, ((0, 0), (0, max(0, 2 - x.shape[1]))))
    support, query = flat[: len(one.support_x)].T, flat[len(one.support_x) :].T
    wrong = one.query_y != one.prediction_y
    scatter = partial(axis.scatter, cmap="tab10", vmin=0, vmax=max(9, int(one.query_y.max())))
    scatter(support[0], support[1], c=one.support_y, marker="s", s=60, edgecolors="black", label="support")
    scatter(query[0], query[1], c=one.query_y, s=18, alpha=0.7, label="query, by its class")
    axis.scatter(query[0, wrong], query[1, wrong], c=VERMILION, marker="x", s=40, label="answered wrongly")
    axis.set(xticks=[], yticks=[])


def regression(cases: Sequence[RegressionCurves], path: Path) -> Path:
    with _figure(max(3.2 * len(cases), LEGEND_IN), 3.4) as figure:
        axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
        for number, (axis, case) in enumerate(zip(axes, cases, strict=True)):
            _draw_fit(axis, RegressionCurves._make(case), number)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return _save(figure, path)


def _series(metrics_jsonl: Path) -> dict[str, tuple[Array, Array]]:
    points: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in metrics_jsonl.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and value is not None:
                points[name].append((row["step"], value))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


def _draw_loss(axis: Axes, series: dict[str, tuple[Array, Array]]) -> None:
    axis.set(title="Loss", xlabel="meta-step")
    _draw_train(axis, series, "train/loss")
    if "val/loss" in series:
        axis.plot(*series["val/loss"], color=VERMILION, marker="o", markersize=3, label="validation")
    _scale(axis, series, ("train/loss", "val/loss"))
    _legend(axis)


def _draw_measure(axis: Axes, series: dict[str, tuple[Array, Array]], measure: Measure) -> None:
    train, val = f"train/{measure.name}", f"val/{measure.name}"
    axis.set(title=measure.title.capitalize(), xlabel="meta-step")
    _draw_train(axis, series, train)
    if val in series:
        steps, values = series[val]
        axis.plot(steps, values, color=VERMILION, marker="o", markersize=3, label="validation")
        if "val/ci95" in series and len(series["val/ci95"][1]) == len(values):
            _draw_interval(axis, steps, values, series["val/ci95"][1])
        best = int(np.argmax(values) if measure.higher_is_better else np.argmin(values))
        label = f"best {measure.text(values[best])}"
        axis.plot(steps[best], values[best], "*", color=GREEN, markersize=13, markeredgecolor="white", label=label)
    if measure.unit == "%":
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    else:
        _scale(axis, series, (train, val))
    _legend(axis)


def _draw_interval(axis: Axes, steps: Array, values: Array, half: Array) -> None:
    label = "95 % CI"
    if len(steps) == 1:  # a band would have no width
        axis.errorbar(steps, values, half, color=VERMILION, alpha=0.5, capsize=6, label=label)
        axis.set_xticks(steps)
        return
    band = axis.fill_between(steps, values - half, values + half, color=VERMILION, alpha=0.2, label=label)
    band.set_linewidth(0)


def _draw_train(axis: Axes, series: dict[str, tuple[Array, Array]], name: str) -> None:
    if name not in series:
        return
    steps, values = series[name]
    axis.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    axis.plot(steps, _smooth(values), color=BLUE, label="training, smoothed")


def _smooth(values: Array) -> Array:
    """Moving average. The centred window is narrower at the start, where curves are steep, and cut off at the end."""
    at = np.arange(len(values))
    half = np.minimum(at, int(SMOOTH_SHARE * len(values) / 2))
    low, high = at - half, np.minimum(at + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    smooth: Array = (total[high] - total[low]) / (high - low)
    return smooth


def _scale(axis: Axes, series: dict[str, tuple[Array, Array]], names: tuple[str, ...]) -> None:
    known = [series[name][1] for name in names if name in series]
    values = np.concatenate(known) if known else np.empty(0)
    if values.size and values.min() > 0 and values.max() / values.min() > LOG_RATIO:
        axis.set_yscale("log")


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


class ClassRow(NamedTuple):
    """One row of an episode's picture: a class with some of its support items, queries and predictions."""

    label: int
    support: Array
    queries: Array
    predicted: Array

    @property
    def width(self) -> float:
        return len(self.support) + GAP + len(self.queries)


def _table(one: ClassifiedEpisode) -> list[ClassRow]:
    def row(label: int) -> ClassRow:
        mine = np.flatnonzero(one.query_y == label)[:MAX_QUERIES]
        support = one.support_x[one.support_y == label][:MAX_SUPPORT]
        return ClassRow(label, support, one.query_x[mine], one.prediction_y[mine])

    return [row(int(label)) for label in np.unique(one.support_y)[:MAX_WAYS]]


def _draw_episode(axis: Axes, table: list[ClassRow], title: str) -> None:
    shots = max(len(row.support) for row in table)
    queries = max(len(row.queries) for row in table)
    for y, row in enumerate(table):
        axis.text(-0.15, y + 0.5, str(row.label), ha="right", va="center", fontsize=9)
        for x, picture in enumerate(row.support):
            _draw_picture(axis, picture, x, y, MID_GREY)
        for x, (picture, guess) in enumerate(zip(row.queries, row.predicted, strict=True)):
            right = int(guess) == row.label
            _draw_picture(axis, picture, shots + GAP + x, y, GREEN if right else VERMILION)
            if not right:
                place = shots + GAP + x + 0.93, y + 0.9
                axis.text(*place, str(int(guess)), ha="right", color="white", fontsize=7, weight="bold", bbox=WRONG_BOX)
    axis.text(shots / 2, -0.15, "support", ha="center", fontsize=8, color=MID_GREY)
    axis.text(shots + GAP + queries / 2, -0.15, "query", ha="center", fontsize=8, color=MID_GREY)
    axis.set(xlim=(-0.5, shots + GAP + queries + 0.1), ylim=(len(table) + 0.1, -0.5), aspect="equal")
    axis.set_title(title, fontsize=9)
    axis.axis("off")


def _draw_picture(axis: Axes, picture: Array, x: float, y: float, frame: str) -> None:
    from matplotlib.patches import Rectangle

    pixels = picture.astype(np.float64)
    pixels = pixels / 255 if pixels.max() > 1 else pixels
    pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    inside = (x + 0.07, x + 0.93, y + 0.93, y + 0.07)
    axis.imshow(np.clip(pixels, 0, 1), cmap="gray", vmin=0, vmax=1, extent=inside, interpolation="nearest")
    width = 0.8 if frame == MID_GREY else 2.2
    axis.add_patch(Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, edgecolor=frame, linewidth=width))


def _frames() -> list[Patch]:
    from matplotlib.patches import Patch

    named = {GREEN: "right", VERMILION: "wrong, with the class that was predicted"}
    return [Patch(facecolor="none", edgecolor=color, label=text, linewidth=2) for color, text in named.items()]


def _draw_fit(axis: Axes, case: RegressionCurves, number: int) -> None:
    ravelled = (part if part is None else np.ravel(part) for part in case)
    flat = RegressionCurves(*ravelled)  # type: ignore[arg-type]  # mypy does not see which one may be None
    order = np.argsort(flat.x_grid)
    grid = flat.x_grid[order]
    axis.plot(grid, flat.true_y[order], color=MID_GREY, linewidth=3, alpha=0.5, label="truth")
    if flat.before_y is not None:
        axis.plot(grid, flat.before_y[order], color=ORANGE, linestyle="--", label="before adaptation")
    axis.plot(grid, flat.after_y[order], color=BLUE, label="after adaptation")
    axis.plot(flat.support_x, flat.support_y, "o", color=VERMILION, markeredgecolor="white", label="support")
    axis.set_title(f"test task {number}", fontsize=9)
    axis.set_xlabel("x")


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure without pyplot, whose global state belongs to the caller and is not safe in threads."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _save(figure: Figure, path: Path) -> Path:
    """Writes without date or version, so that equal numbers give equal files."""
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
    return path
