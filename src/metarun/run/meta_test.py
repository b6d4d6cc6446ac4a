"""Meta-test: measures the test split, writes every episode's score, and draws the first few episodes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from metarun.config.schema import RunConfig
from metarun.data.tasks.contracts import ClassificationData, Tasks
from metarun.data.tasks.sinusoids import SinusoidTasks
from metarun.engine.ranks import Ranks
from metarun.measures import Estimate, Measure, measures_for
from metarun.results import plots
from metarun.run.build import Parts
from metarun.run.directory import RunDir, write_text
from metarun.train.evaluate import evaluate
from metarun.types import Batch, Episode, Meta

PICTURED = 4  # episodes
GRID = 200  # points of a curve


def score_test_split(
    config: RunConfig, parts: Parts, meta: Meta, tick: Callable[[int], None], ranks: Ranks
) -> dict[str, Estimate]:
    """Each measure on the test split, by its name; on all ranks."""
    tasks, measures = _test_tasks(config, parts), measures_for(config.kind)
    episodes, batch = config.eval.test_episodes, config.eval.tasks_at_once
    return evaluate(parts.engine, meta, tasks, measures, episodes, batch, tick, ranks)


def _test_tasks(config: RunConfig, parts: Parts) -> Tasks:
    """The test split is opened here and nowhere else."""
    return parts.data.tasks("test", config.task.test, config.seed)


def write_test(
    config: RunConfig, parts: Parts, meta: Meta, run: RunDir, found: Mapping[str, Estimate]
) -> dict[str, float]:
    """Writes scores and pictures into the run. Returns what the summary says of the test."""
    measures, episodes = measures_for(config.kind), config.eval.test_episodes
    primary = measures[0]
    write_scores(run.scores, found[primary.name])
    draw_episodes(parts, meta, _test_tasks(config, parts), run.episodes)
    summary: dict[str, float] = {}
    for measure in measures:
        summary |= _as_metrics(found[measure.name], f"test/{measure.name}", _interval_name(measure, primary))
    sources = cast(ClassificationData, parts.data).member_names("test") if config.kind == "classes" else ()
    return {**summary, "test/episodes": episodes, **scores_by_source(sources, measures, found)}


def scores_by_source(
    sources: Sequence[str], measures: Sequence[Measure], found: Mapping[str, Estimate]
) -> dict[str, float]:
    """Each measure on the episodes of each data set of a mixture; the data sets take turns. One data set: nothing."""
    scores: dict[str, float] = {}
    if len(sources) < 2:
        return scores
    for measure, (place, source) in product(measures, enumerate(sources)):
        own = measure.estimate(found[measure.name].per_episode[place :: len(sources)])
        scores |= _as_metrics(own, f"test/{measure.name}_{source}", f"{_interval_name(measure, measures[0])}_{source}")
    return scores


def _interval_name(measure: Measure, primary: Measure) -> str:
    return "test/ci95" if measure is primary else f"test/{measure.name}_ci95"


def _as_metrics(estimate: Estimate, name: str, interval_name: str) -> dict[str, float]:
    return {name: estimate.value} | ({} if estimate.ci95 is None else {interval_name: estimate.ci95})


def write_scores(path: Path, score: Estimate) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["index", "score"])
    rows.writerows(enumerate(score.per_episode.tolist()))
    write_text(path, text.getvalue())


def draw_episodes(parts: Parts, meta: Meta, tasks: Tasks, path: Path) -> None:
    """Draws the first tasks of the split: items with predictions, or curves before and after adaptation."""
    found = tasks.by_shape(torch.arange(PICTURED))
    if isinstance(tasks, SinusoidTasks):
        _draw_curves(parts, meta, tasks, found[0].episode, path)
        return
    shown: dict[int, plots.ClassifiedEpisode] = {}
    for places, episode, *_ in found:
        predicted = parts.engine.scores(meta, episode).argmax(-1)
        data, (support, query, _) = cast(ClassificationData, parts.data), episode
        labels = (_as_numpy(support.y), _as_numpy(query.y), _as_numpy(predicted))
        rows = zip(_displayed(data, support.x), _displayed(data, query.x), *labels, strict=True)
        for place, (support_x, query_x, support_y, query_y, answer_y) in zip(places.tolist(), rows, strict=True):
            shown[place] = plots.ClassifiedEpisode(support_x, support_y, query_x, query_y, answer_y)
    draw = plots.episodes if shown[0].support_x.ndim == 4 else plots.features
    draw([shown[number] for number in sorted(shown)], path)


def _draw_curves(parts: Parts, meta: Meta, tasks: SinusoidTasks, episode: Episode, path: Path) -> None:
    low, high = tasks.data.x
    grid = torch.linspace(low, high, GRID, dtype=torch.float64, device=episode.index.device)
    x_TQ = grid.expand(PICTURED, -1)
    truth = tasks.sinusoids(episode.index, x_TQ)
    x = x_TQ[..., None].to(episode.support.x.dtype)
    after = parts.engine.scores(meta, Episode(episode.support, Batch(x, torch.zeros_like(x)), episode.index))
    before = None
    if "head.weight" in meta["weights"]:  # else a prediction needs a support set
        with torch.no_grad():
            before = _as_numpy(parts.net(meta["weights"], x[0])[0].squeeze(-1))
    flat = (_as_numpy(v.squeeze(-1)) for v in (episode.support.x, episode.support.y))
    columns = (*flat, _as_numpy(x_TQ), _as_numpy(truth), [before] * PICTURED, _as_numpy(after.squeeze(-1)))
    plots.regression([plots.RegressionCurves(*row) for row in zip(*columns, strict=True)], path)


def _displayed(data: ClassificationData, x: Tensor) -> plots.Array:
    pixels = data.as_pixels(x)
    return _as_numpy(x if pixels is None else pixels)


def _as_numpy(value: Tensor) -> plots.Array:
    return value.cpu().numpy()
