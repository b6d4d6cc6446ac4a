"""On a GPU: the same tasks, the same gradients, a run that learns and resumes. Run by hand: make test ARGS="-m gpu"."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from metarun.cli.main import main
from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.run import build
from metarun.types import Aux, Episode, Meta
from support.contract import NAMES
from support.runs import TINY, only_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def step(algo: str, device: str, engine: str) -> tuple[Episode, Meta, Aux]:
    composed = compose([f"algo={algo}", f"device={device}", f"engine={engine}", "model.width=8", "track=local"])
    config = check_config(composed.plain, composed.choices)
    parts = build.prepare(config, lambda _: None)
    meta = {group: {name: value.double() for name, value in params.items()} for group, params in parts.meta.items()}
    episode = build.train_tasks(config, parts.data)(torch.arange(4))
    return episode, *parts.engine.meta_grad(meta, episode, 0)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("algo", NAMES)
def test_gpu_equals_cpu(algo: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DTYPE", torch.float64)
    episode, grads, aux = step(algo, "cuda", engine)
    plain_episode, plain_grads, plain_aux = step(algo, "cpu", "loop")
    assert torch.equal(episode.support.x.cpu(), plain_episode.support.x)
    assert torch.equal(episode.query.y.cpu(), plain_episode.query.y)
    assert float(aux.metrics["loss"]) == pytest.approx(float(plain_aux.metrics["loss"]), rel=1e-10)
    for group, params in plain_grads.items():
        for name, value in params.items():
            there = grads[group][name].cpu()
            assert torch.allclose(there, value, rtol=1e-9, atol=1e-9 * float(value.abs().max())), f"{group} {name}"


@pytest.mark.parametrize("algo", ["maml", "protonet", "reptile"])
def test_a_captured_step_equals_the_launched_one(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DTYPE", torch.float64)
    composed = compose([f"algo={algo}", "device=cuda", "model.width=8", "track=local", "engine.cuda_graph=on"])
    config = check_config(composed.plain, composed.choices)
    parts = build.prepare(config, lambda _: None)
    plain = dataclasses.replace(config.engine, cuda_graph="off").build(config.algo, parts.net)
    meta = {group: {name: value.double() for name, value in params.items()} for group, params in parts.meta.items()}
    tasks = build.train_tasks(config, parts.data)
    for number in range(3):  # captured, then replayed on other tasks
        episode = tasks(torch.arange(4 * number, 4 * number + 4))
        grads, aux = parts.engine.meta_grad(meta, episode, number)
        expected, plain_aux = plain.meta_grad(meta, episode, number)
        assert torch.allclose(aux.metrics["loss"], plain_aux.metrics["loss"], rtol=1e-12)
        for group, params in expected.items():
            assert all(torch.allclose(grads[group][name], value, rtol=1e-9) for name, value in params.items())


@pytest.mark.parametrize("captured", ["on", "off"])
def test_a_run_on_the_gpu(alone: Path, captured: str) -> None:
    words = ["device=cuda", "train.steps=200", "train.meta_batch=16", "model.width=32", f"engine.cuda_graph={captured}"]
    assert main([*TINY, *words]) == 0
    summary = json.loads((only_run(alone / "outputs") / "summary.json").read_text())
    assert summary["protocol"]["device"] == "cuda"
    assert summary["test/acc"] > 0.5
