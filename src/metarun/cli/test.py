"""`metarun test RUN_DIR`: a run's best checkpoint on other episodes, tasks or data; a new result beside the old one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.config.compose import Composed, compose, compose_over
from metarun.config.convert import values_of
from metarun.config.device import set_tf32
from metarun.config.places import groups
from metarun.config.renamed import key_of, tell, translated, translated_choices
from metarun.config.schema import RunConfig, check_capacities, load
from metarun.data.tasks.contracts import shape_name
from metarun.errors import ConfigError
from metarun.measures import primary_measure
from metarun.run.build import Parts, build_parts, open_data
from metarun.run.checkpoint import read
from metarun.run.directory import RunDir, locked, read_summary, run_dir, write_or_match_config, write_summary
from metarun.run.meta_test import meta_test
from metarun.run.provenance import protocol
from metarun.torch_setup.allocator import keep_pages
from metarun.track.console import Console, say, show_result
from metarun.train.interrupt import Interrupted, listening
from metarun.types import Artifacts, Meta

COMPUTED = ("tuned", "experiment")  # groups whose file follows from the others, or changes them
FREE = ("data", "task", "eval", "algo", "engine", "device", "tf32", "seed")


def test(words: list[str]) -> int:
    if not words or "=" in words[0]:
        raise ConfigError(
            "test: name a run directory first, as in: metarun test outputs/.../seed0 eval.test_episodes=2000"
        )
    folder = Path(words[0])
    best = run_dir(folder).best
    if not best.exists():
        raise ConfigError(
            f"{folder}: holds no best.pt; a run directory looks like outputs/glyphs-5w1s/maml-1a2b3c4d/seed0"
        )
    trained = read(best, torch.device("cpu"))
    config = _config(trained["about"], words[1:], run_dir(folder).split)
    keep_pages(config.allocator)
    set_tf32(config.tf32)
    data = open_data(config, say)
    check_capacities(config, data, ("test",))
    parts = build_parts(config, data)
    _fill(parts.meta, trained["meta"], config)
    shape = shape_name(config.task.test)
    place = folder / "test" / f"{config.choices['data']}-{shape}-{config.signature}" / f"seed{config.seed}"
    with locked(place) as run:
        write_or_match_config(run, config)
        summary = read_summary(run)
        if summary is None:
            origin = {"run": str(folder), "best_step": trained["step"], "protocol": protocol(config)}
            return _carry_out(config, parts, run, origin)
        say(f"{place}: this test was made before; its result:")
        show_result(summary, place)
        return 0


def _carry_out(config: RunConfig, parts: Parts, run: RunDir, origin: Mapping[str, Any]) -> int:
    console = Console(f"meta-test of {origin['run']}", 0, 0, primary_measure(config.kind))
    exit_code = 1
    with listening() as stop:

        def tick(done: int) -> None:
            console.tick("meta-test", done, config.eval.test_episodes)
            stop.check()

        try:
            summary = {**meta_test(config, parts, parts.meta, run, tick), **origin}
            write_summary(run, summary)
            console.finish(summary, Artifacts(run.curves, run.episodes, run.scores, run.best, run.config))
            exit_code = 0
        except Interrupted as stopped:
            exit_code = stopped.exit_code
            console.note(f"{stopped}: nothing was kept of this test; the same command makes it again")
        finally:
            console.close(exit_code)
    return exit_code


def _config(about: Mapping[str, Any], words: list[str], split: Path) -> RunConfig:
    """The run's own configuration with what a test may change; the training shape becomes that of the test."""
    for word in words:
        key = key_of(word)
        if key.split(".")[0] not in FREE or key == "algo" or key.startswith("task.train"):
            raise ConfigError(
                f"{key}: was settled when the run was trained; a test may set {', '.join(FREE[:3])}, "
                f"algo.KEY, {', '.join(FREE[4:])}"
            )
    choices = translated_choices(about["choices"], groups())
    now = compose([f"{group}={choice}" for group, choice in choices.items() if group not in COMPUTED])
    base = Composed(_filled(translated(about["config"]).plain, now.plain), choices)
    composed = compose_over(base, words)
    tell(composed.renamed)
    task = dict(values_of(composed.plain, "task"))
    task["train"] = {**values_of(task, "train"), **{name: value for name, value in task.items() if name != "train"}}
    data = dict(values_of(composed.plain, "data"))
    if "path" in data and not any(word.startswith("data") for word in words):
        data["split"] = str(split)  # of the user's own data: classes added later must not trade places
    plain = {**composed.plain, "data": data, "task": task, "track": {"_target_": "metarun.track.jsonl.FilesOnly"}}
    config, trained_on = load(plain, composed.choices), load(base.plain, base.choices)
    if config.kind != trained_on.kind:
        raise ConfigError(f"data={config.choices['data']}: has {config.kind}, the run was trained on {trained_on.kind}")
    return config


def _filled(values: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a run said, and what it could not yet say: keys that came with a later version."""
    both = {key: (values.get(key), now.get(key)) for key in {**now, **values}}
    return {
        key: _filled(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else values.get(key, new)
        for key, (old, new) in both.items()
    }


def _fill(meta: Meta, trained: Meta, config: RunConfig) -> None:
    """The trained values; of a head for more ways than asked, its first rows."""
    for group, params in meta.items():
        for name, value in params.items():
            if name.startswith("head.") and not config.algo.uses_head:
                params[name] = trained[group][name].to(value)  # of the training classes, however many they were
            else:
                value.copy_(_fitting(trained[group][name], value, name, config))


def _fitting(trained: Tensor, wanted: Tensor, name: str, config: RunConfig) -> Tensor:
    if trained.shape == wanted.shape:
        return trained
    rows = wanted.shape[0]
    if name.startswith("head.") and trained.shape[1:] == wanted.shape[1:]:
        if trained.shape[0] > rows:
            return trained[:rows]
        raise ConfigError(
            f"task.ways={config.task.ways}: the head of this run was trained for {trained.shape[0]} ways; "
            f"use at most {trained.shape[0]}, or train a run with task.ways={config.task.ways}"
        )
    raise ConfigError(
        f"data={config.choices['data']}: its items do not fit the trained network ({name} is {list(trained.shape)}, "
        f"the data needs {list(wanted.shape)}); test on data of the shape it was trained on"
    )
