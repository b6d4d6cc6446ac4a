"""A finished run from Python: its parts, and predictions that are the meta-test's own."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import metarun
from metarun.run.build import build_parts, open_data
from metarun.run.checkpoint import read_checkpoint
from metarun.run.item_format import item_format_of
from support.runs import TINY

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
CLASSES = ("algo=maml", "algo=protonet", "algo=baseline")
SHORT = [*TINY, "train.steps=2", "eval.every=2", "eval.val_episodes=2", "eval.test_episodes=3", "eval.tasks_at_once=1"]
FOR_VALUES = [word for word in SHORT if not word.startswith("model")]


def finished(*words: str) -> Path:
    config = metarun.compose([*words, "device=cpu"])
    assert metarun.execute(config).exit_code == 0
    return config.folder


@pytest.fixture(scope="module")
def shared_folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(cache))
        return finished(*SHORT, "algo=maml", f"out={tmp_path_factory.mktemp('shared')}")


@pytest.fixture
def own_folder(shared_folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(shared_folder, tmp_path / "copy")


@pytest.mark.parametrize("algo", CLASSES)
def test_predictions_are_bitwise_those_of_the_meta_test(algo: str) -> None:
    """From raw uint8 images."""
    run = metarun.load(finished(*SHORT, algo), device="cpu")
    parts = build_parts(run.config, open_data(run.config, lambda _: None))
    episode = parts.data.tasks("test", run.config.task.test, run.config.seed)(torch.tensor([0]))
    outputs_QN = parts.engine.scores(dict(run.meta), episode)[0]
    pixels = [parts.data.as_pixels(batch.x[0]) for batch in (episode.support, episode.query)]  # type: ignore[attr-defined]
    support_x, query_x = (value.numpy() for value in pixels)
    predicted_QN = run.adapt(support_x, episode.support.y[0].numpy()).predict(query_x)
    assert torch.equal(predicted_QN, outputs_QN[:, : predicted_QN.shape[1]])
    assert predicted_QN.shape[1] == run.config.task.ways
    right = (predicted_QN.argmax(1) == episode.query.y[0]).double().mean().item()
    assert right == run.scores[0]


def test_values_too() -> None:
    run = metarun.load(finished(*FOR_VALUES, "data=sine", "algo=maml"), device="cpu")
    data = open_data(run.config, lambda _: None)
    episode = data.tasks("test", run.config.task.test, run.config.seed)(torch.tensor([0]))
    predicted_Q1 = run.adapt(episode.support.x[0], episode.support.y[0]).predict(episode.query.x[0])
    error = (predicted_Q1.double() - episode.query.y[0].double()).square().mean().item()
    assert error == run.scores[0]


def test_what_the_directory_says(shared_folder: Path) -> None:
    folder = shared_folder
    run = metarun.load(str(folder), device="cpu")
    assert run.summary == json.loads((folder / "summary.json").read_text())
    assert np.mean(run.scores) == pytest.approx(run.summary["test/acc"])
    assert len(run.scores) == 3
    assert [row["step"] for row in run.metrics][-1] == 2
    best = read_checkpoint(folder / "best.pt", torch.device("cpu"))["meta"]["weights"]
    weights = dict(run.network.named_parameters())
    assert best.keys() <= weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in best.items())


def test_the_data_set_is_not_needed(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.run.finished.open_data", None)
    assert metarun.load(shared_folder, device="cpu").item_format.shape == (1, 28, 28)


def test_a_checkpoint_of_before_opens_the_data_set(own_folder: Path) -> None:
    content = read_checkpoint(own_folder / "best.pt", torch.device("cpu"))
    del content["about"]["item"]
    torch.save(content, own_folder / "best.pt")
    run = metarun.load(own_folder, device="cpu")
    there = item_format_of(open_data(run.config, lambda _: None))
    assert dataclasses.astuple(run.item_format) == dataclasses.astuple(there)


def test_mistakes_are_said_in_a_line(own_folder: Path) -> None:
    with pytest.raises(metarun.RunError, match="holds no run"):
        metarun.load("nowhere")
    with pytest.raises(metarun.ConfigError, match=r"did you mean train\.steps"):
        metarun.compose(["train.stepz=3"])
    run = metarun.load(own_folder, device="cpu")
    x = np.zeros((6, 1, 28, 28), dtype=np.uint8)
    with pytest.raises(metarun.RunError, match="trained for 5 ways"):
        run.adapt(x, np.arange(6))
    with pytest.raises(metarun.RunError, match=r"takes items of shape \[1, 28, 28\]"):
        run.adapt(x[:, 0], np.arange(6))
    with pytest.raises(metarun.RunError, match="floats from 0 to 1"):
        run.adapt(x + 200.0, np.arange(6))
    with pytest.raises(metarun.RunError, match="6 support items and 5 labels"):
        run.adapt(x, np.arange(5))
    (own_folder / "summary.json").unlink()
    with pytest.raises(metarun.RunError, match="is not finished"):
        metarun.load(own_folder)


def test_a_mixture_wants_normalised_items() -> None:
    words = ["data=mixture", "data.sources=[glyphs]", "algo=protonet"]
    run = metarun.load(finished(*SHORT, *words), device="cpu")
    x = torch.rand(5, 1, 28, 28)
    with pytest.raises(metarun.RunError, match="normalised=True"):
        run.adapt(x, torch.arange(5))
    adapted = run.adapt(x, torch.arange(5), normalised=True)
    assert adapted.predict(x, normalised=True).argmax(1).tolist() == list(range(5))


def test_renamed_keys_warn() -> None:
    with pytest.warns(FutureWarning, match=r"eval\.tasks_at_once"):
        assert metarun.compose(["eval.batch=7", "device=cpu"]).eval.tasks_at_once == 7


def test_the_import_is_light() -> None:
    code = "import sys, metarun; sys.exit(bool({'torch', 'numpy', 'hydra', 'yaml'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    code = "import time; start = time.process_time(); import metarun; print(time.process_time() - start)"
    took = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))
    assert took < 0.05, took


def test_the_page_runs_as_it_stands() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    exec("\n".join(blocks), {})
