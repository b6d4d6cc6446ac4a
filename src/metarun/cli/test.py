"""`metarun test RUN_DIR`: a run's best checkpoint on other episodes, tasks or data; a new result beside the old one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.config.compose import compose_over, composed_from_stored
from metarun.config.convert import values_of
from metarun.config.device import set_tf32
from metarun.config.renamed import key_of, tell
from metarun.config.schema import RunConfig, check_capacities, check_config
from metarun.data.tasks.contracts import shape_name
from metarun.engine.ranks import OneRank
from metarun.errors import ConfigError
from metarun.measures import primary_measure
from metarun.run.build import Parts, build_parts, open_data
from metarun.run.checkpoint import read_checkpoint
from metarun.run.directory import RunDir, locked, read_summary, run_dir, write_or_match_config, write_summary
from metarun.run.meta_test import score_test_split, write_test
from metarun.run.provenance import protocol
from metarun.torch_setup.allocator import keep_pages
from metarun.torch_setup.torchrun import torchrun_count
from metarun.track.console import Console, say, show_result
from metarun.train.interrupt import Interrupted, listening
from metarun.types import Artifacts, Meta

FREE = ("data", "task", "eval", "algo", "engine", "device", "tf32", "seed")


def test(words: list[str]) -> int:
    if (torchrun_count() or 1) > 1:
        raise ConfigError("test: runs in one process; start it without torchrun")
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
    trained = read_checkpoint(best, torch.device("cpu"))
    config = _test_config(trained["about"], words[1:], run_dir(folder).split)
    keep_pages(config.allocator)
    set_tf32(config.tf32)
    data = open_data(config, say)
    check_capacities(config, data, ("test",))
    parts = build_parts(config, data)
    _load_trained(parts.meta, trained["meta"], config)
    place = _test_folder(folder, config)
    with locked(place) as run:
        write_or_match_config(run, config)
        summary = read_summary(run)
        if summary is None:
            origin = {"run": str(folder), "best_step": trained["step"], "protocol": protocol(config)}
            return _test_and_write(config, parts, run, origin)
        say(f"{place}: this test was made before; its result:")
        show_result(summary, place)
        return 0


def _test_folder(folder: Path, config: RunConfig) -> Path:
    """Where the test is kept; one that the previous version made is found by the signature of its key names."""
    name = f"{config.choices['data']}-{shape_name(config.task.test)}"
    signatures = (config.signature, config.signature_of_previous_version)
    now, before = (folder / "test" / f"{name}-{signature}" / f"seed{config.seed}" for signature in signatures)
    return before if before.exists() and not now.exists() else now


def _test_and_write(config: RunConfig, parts: Parts, run: RunDir, origin: Mapping[str, object]) -> int:
    console = Console(f"meta-test of {origin['run']}", 0, 0, primary_measure(config.kind))
    exit_code, ranks = 1, OneRank()
    with listening() as stop:

        def tick(done: int) -> None:
            console.tick("meta-test", done, config.eval.test_episodes)
            stop.check_now(ranks)

        try:
            found = score_test_split(config, parts, parts.meta, tick, ranks)
            summary = {**write_test(config, parts, parts.meta, run, found), **origin}
            write_summary(run, summary)
            console.finish(summary, Artifacts(run.curves, run.episodes, run.scores, run.best, run.config))
            exit_code = 0
        except Interrupted as stopped:
            exit_code = stopped.exit_code
            console.note(f"{stopped}: nothing was kept of this test; the same command makes it again")
        finally:
            console.close(exit_code)
    return exit_code


def _test_config(about: Mapping[str, Any], words: list[str], split: Path) -> RunConfig:
    """The run's configuration, changed by `words`. The task shape of training becomes that of the test."""
    for word in words:
        key = key_of(word)
        if key.split(".")[0] not in FREE or key == "algo" or key.startswith("task.train"):
            raise ConfigError(
                f"{key}: was settled when the run was trained; a test may set {', '.join(FREE[:3])}, "
                f"algo.KEY, {', '.join(FREE[4:])}"
            )
    base = composed_from_stored(about["config"], about["choices"])
    composed = compose_over(base, words)
    tell(composed.renamed)
    task = dict(values_of(composed.plain, "task"))
    task["train"] = {**values_of(task, "train"), **{name: value for name, value in task.items() if name != "train"}}
    data = dict(values_of(composed.plain, "data"))
    if "path" in data and not any(word.startswith("data") for word in words):
        data["split"] = str(split)  # of the user's own data: classes added later must not trade places
    plain = {**composed.plain, "data": data, "task": task, "track": {"_target_": "metarun.track.jsonl.FilesOnly"}}
    config, trained_on = check_config(plain, composed.choices), check_config(base.plain, base.choices)
    if config.kind != trained_on.kind:
        raise ConfigError(f"data={config.choices['data']}: has {config.kind}, the run was trained on {trained_on.kind}")
    return config


def _load_trained(meta: Meta, trained: Meta, config: RunConfig) -> None:
    """Fills `meta` with the trained values. A head for more ways than the test has gives its first rows."""
    for group, params in meta.items():
        for name, value in params.items():
            if name.startswith("head.") and not config.algo.uses_head:
                params[name] = trained[group][name].to(value)  # of the training classes, however many they were
            else:
                value.copy_(_rows_that_fit(trained[group][name], value, name, config))


def _rows_that_fit(trained: Tensor, wanted: Tensor, name: str, config: RunConfig) -> Tensor:
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
