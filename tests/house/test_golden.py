"""Twenty meta-steps whose losses stay what they were: a refactor changes nothing, a change of numbers shows.

`python tests/test_golden.py` writes the stored curve anew; say in LOG.md why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.run import build

STORED = Path(__file__).parent / "golden.json"
STEPS = 20
CASES = {  # every number that a change of taste in conf/ may move is said here
    "maml-glyphs": ["algo=maml", "algo.inner_lr=0.4", "optim=adam", "optim.lr=0.002"],
    "metasgd-sine": ["algo=metasgd", "data=sine", "algo.inner_lr=0.01", "optim=adam", "optim.lr=0.002"],
    "protonet-glyphs": [
        *("algo=protonet", "algo.bn=running", "optim=sgd", "optim.lr=0.1"),
        *("optim/schedule=cosine", "train.outer=[{clip_by_value:0.01}]"),
    ],
}


def curve(words: list[str]) -> list[float]:
    """float64, so that another processor's rounding stays far below a change of the mathematics."""
    width = [] if "data=sine" in words else ["model.width=8"]
    composed = compose([*words, *width, "track=local", "train.meta_batch=4", f"train.steps={STEPS}"])
    config = check_config(composed.plain, composed.choices)
    parts = build.prepare(config, lambda _: None)
    meta = {group: {name: value.double() for name, value in params.items()} for group, params in parts.meta.items()}
    state, outer, train = build.new_state(config, meta), build.build_outer_step(config), config.train
    tasks = parts.data.tasks("train", config.task.train, config.seed)
    losses = []
    for step in range(STEPS):
        episode = tasks(torch.arange(step * train.meta_batch, (step + 1) * train.meta_batch))
        grads, aux = parts.engine.meta_grad(meta, episode, step)
        outer(state, grads, aux)
        state.step += 1
        losses.append(aux.metrics["loss"].item())
    return losses


@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_the_stored_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DTYPE", torch.float64)
    assert curve(CASES[case]) == pytest.approx(json.loads(STORED.read_text())[case], rel=1e-9)


if __name__ == "__main__":
    os.environ.setdefault("METARUN_CACHE", "/tmp/metarun-cache")
    build.DTYPE = torch.float64
    STORED.write_text(json.dumps({case: curve(words) for case, words in CASES.items()}, indent=1) + "\n")
