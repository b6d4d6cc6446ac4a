"""Every mistake is one line that names the key and the remedy, exit code 2, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.cli.main import main

CASES = [
    # words, what the line must say
    (["train.stepz=3"], ["train.stepz", "did you mean train.steps"]),
    (["trian.steps=3"], ["trian.steps", "train.steps"]),
    (["algos=maml"], ["algos", "did you mean algo"]),
    (["algo=malm"], ["algo=malm", "did you mean maml", "protonet"]),
    (["optim/schedule=cosinus"], ["optim/schedule=cosinus", "did you mean cosine"]),
    (["+train.foo=1"], ["train.foo", "unknown key"]),
    (["+foo=1"], ["foo", "unknown key"]),
    (["+algo.inner_rl=1"], ["algo.inner_rl", "did you mean inner_lr"]),
    (["~algo.inner_lr"], ["algo.inner_lr", "missing"]),
    (["train.steps=many"], ["train.steps=many", "a whole number"]),
    (["train.steps=1.5"], ["train.steps=1.5", "a whole number"]),
    (["train.steps=true"], ["train.steps=true", "a whole number"]),
    (["train.steps=null"], ["train.steps=null", "a whole number"]),
    (["train.steps=0"], ["train.steps=0", "at least 1"]),
    (["train.steps=["], ["train.steps=[", "cannot be read"]),
    (["train.meta_batch=-4"], ["train.meta_batch=-4", "at least 1"]),
    (["train.outer=[{clip_by_norm:-1}]"], ["train.outer[0].clip_by_norm.limit=-1", "above 0"]),
    (["train.outer=[{clip_by_nrom:1}]"], ["train.outer[0]=clip_by_nrom", "did you mean clip_by_norm"]),
    (["train=5"], ["train=5", "no such choice"]),
    (["eval.tasks_at_once=0"], ["eval.tasks_at_once=0", "at least 1"]),
    (["eval.test_episodes=1"], ["eval.test_episodes=1", "at least 2"]),
    (["engine.chunk=0"], ["engine.chunk=0", "at least 1"]),
    (["engine=vmpa"], ["engine=vmpa", "did you mean vmap"]),
    (["task=5w1"], ["task=5w1", "did you mean 5w1s"]),
    (["task.ways=0"], ["task.ways=0", "at least 1"]),
    (["task.ways=5000"], ["ways=5000", "classes; use at most"]),
    (["task.shots=18", "task.queries=3"], ["shots=18", "queries=3", "20 items", "shots + queries <= 20"]),
    (["task.train.ways=7"], ["task.train.ways=7", "task.ways=5", "make them equal"]),
    (["algo.steps=0"], ["algo.steps=0", "at least 1"]),
    (["algo.inner_lr=-1"], ["algo.inner_lr=-1", "above 0"]),
    (["algo.inner_lr=inf"], ["algo.inner_lr=inf", "finite"]),
    (["algo.bn=bacth"], ["algo.bn=bacth", "did you mean batch"]),
    (["algo.adapt=[tail.*]"], ["tail.*", "matches no parameter"]),
    (["algo=protonet", "data=sine"], ["algo=protonet", "data=sine", "values"]),
    (["model.width=wide"], ["model.width=wide", "a whole number"]),
    (["model.widht=8"], ["model.widht", "model.width"]),
    (["model._target_=metarun.models.conv4.Conv5"], ["model._target_=metarun.models.conv4.Conv5", "no such class"]),
    (["data=sine", "model=conv4"], ["model=conv4"]),
    (["optim.lr=fast"], ["optim.lr=fast", "a number"]),
    (["~optim.lr"], ["optim.lr", "missing"]),
    (["optim.lr=-1"], ["optim", "learning rate", "-1"]),
    (["optim.betas=[0.9]"], ["optim.betas", "2 values"]),
    (["optim._target_=torch.nn.Linear"], ["optim._target_", "torch.optim"]),
    (["optim.schedule=cosine"], ["optim.schedule", "optim/schedule=cosine"]),
    (["optim/schedule=cosine", "optim.schedule.final=2"], ["optim.schedule.final=2", "0 to 1"]),
    (["engine=learn2learn", "algo=reptile"], ["engine=learn2learn", "engine=vmap"]),
    (["engine=learn2learn", "algo.bn=support"], ["engine=learn2learn", "bn"]),
    (["seed=-1"], ["seed=-1", "from 0"]),
    (["seed=one"], ["seed=one", "a whole number"]),
    (["tf32=true", "device=cpu"], ["tf32=true", "GPU"]),
    (["tf32=often"], ["tf32=often"]),
    (["device=gpu"], ["device=gpu", "auto, cpu, cuda"]),
    (["device=cuda:99"], ["device=cuda:99", "GPUs"]),
    (["track.mode=ofline"], ["track.mode=ofline", "did you mean offline"]),
    (["data.amplitude=[1,2]"], ["data.amplitude", "unknown key"]),
    (["data=sine", "data.phase=[3,1]"], ["data.phase=[3.0, 1.0]", "the smaller first"]),
    (["tset", "outputs"], ["tset", "did you mean test"]),
    (["--steps=3"], ["--steps=3", "no such flag"]),
    (["show", "-m", "seed=0,1"], ["-m", "not of show"]),
    (["-m", "seed=0,1", "algo=maml,malm"], ["algo=malm", "did you mean maml"]),
    (["-m", "seed=0,1", "train.steps=5,0"], ["train.steps=0", "at least 1"]),
    (["seed=0,1"], ["seed", "-m"]),
    (["test"], ["name a run directory"]),
    (["test", "nowhere"], ["nowhere", "best.pt"]),
]


@pytest.mark.parametrize(("words", "said"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_bad_input(words: list[str], said: list[str], alone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(words)
    out, err = capfd.readouterr()
    assert code == 2, f"exit {code}: {out}{err}"
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("metarun: ")
    for part in said:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"
    assert "Traceback" not in out + err
    assert list(alone.iterdir()) == []
