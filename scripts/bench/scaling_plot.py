"""Draws the figures of scaling.py as one picture: time above, peak memory below, a column for each quantity."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from metarun.results.plots import BLUE, GREEN, STYLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_STYLES = {
    "learn2learn": (VERMILION, "s", "learn2learn's loop"),
    "vmap": (BLUE, "o", "metarun, eager"),
    "compiled": (GREEN, "^", "metarun, compiled"),
}
LABELS = {
    "tasks": "tasks in a meta-step",
    "inner steps": "inner steps",
    "ways": "ways",
    "image side": "image side, pixels",
}
Curves = dict[str, dict[str, list[tuple[float, float, float | None]]]]
"""Quantity that grows -> contender -> (value, seconds, peak MB)."""


def draw(numbers: Path, picture: Path) -> None:
    curves = read(numbers)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(curves), 5.4), layout="constrained")
        axes = figure.subplots(2, len(curves), squeeze=False, sharey="row")
        for column, (grows, found) in enumerate(curves.items()):
            for name, points in found.items():
                colour, marker, label = LINE_STYLES[name]
                style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.4, "label": label}
                axes[0, column].plot([x for x, _, _ in points], [1000 * s for _, s, _ in points], **style)
                with_memory = [(x, mb) for x, _, mb in points if mb is not None]
                axes[1, column].plot([x for x, _ in with_memory], [mb for _, mb in with_memory], **style)
            for row in range(2):
                _use_log_axes(axes[row, column], sorted({x for points in found.values() for x, _, _ in points}))
            axes[1, column].set_xlabel(LABELS[grows])
        axes[0, 0].set_ylabel("ms a meta-step")
        axes[1, 0].set_ylabel("peak memory, MB")
        handles = {label: h for ax in axes[0] for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(picture, dpi=150, metadata={"Software": None})


def read(numbers: Path) -> Curves:
    curves: Curves = defaultdict(lambda: defaultdict(list))
    with numbers.open() as file:
        for row in csv.DictReader(file):
            memory_mb = float(row["memory_mb"]) if row["memory_mb"] else None
            point = float(row["value"]), float(row["seconds"]), memory_mb
            curves[row["grows"]][row["contender"]].append(point)
    return curves


def _use_log_axes(axes: Axes, values: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, labels=[f"{value:g}" for value in values])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,g}")
