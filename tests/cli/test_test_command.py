"""`metarun test`: other episodes, shapes and data for a finished run; the first result is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metarun.cli.main import main
from support.runs import TINY, only_run

SHOWN = ("summary.json", "test_scores.csv", "episodes.png", "config.yaml")


def made_for(run: Path) -> list[Path]:
    return sorted((run / "test").glob("*/seed*"))


def scores(folder: Path) -> list[float]:
    return [float(line.split(",")[1]) for line in (folder / "test_scores.csv").read_text().splitlines()[1:]]


def trained(alone: Path, *words: str) -> Path:
    assert main([*TINY, *words]) == 0
    return only_run(alone / "outputs")


def test_more_episodes_continue_the_same_list(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(alone)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert main(["test", str(run), "eval.test_episodes=15", "eval.tasks_at_once=5"]) == 0
    (again,) = made_for(run)
    for name in SHOWN:
        assert (again / name).stat().st_size > 0
    assert scores(again)[:6] == pytest.approx(scores(run), abs=1e-12)
    assert len(scores(again)) == 15
    summary = json.loads((again / "summary.json").read_text())
    assert summary["run"] == str(run)
    assert summary["best_step"] == json.loads((run / "summary.json").read_text())["best_step"]
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before
    capsys.readouterr()
    assert main(["test", str(run), "eval.test_episodes=15", "eval.tasks_at_once=5"]) == 0
    assert "this test was made before" in capsys.readouterr().out
    assert len(made_for(run)) == 1


def test_other_shots_queries_steps_and_seed(alone: Path) -> None:
    run = trained(alone)
    for words in (
        ["task.shots=3"],
        ["task.queries=7"],
        ["algo.test_steps=1"],
        ["seed=5"],
        ["task=5w5s"],
        ["engine=loop"],
    ):
        assert main(["test", str(run), *words]) == 0
    assert len(made_for(run)) == 6
    seeds = {json.loads((folder / "summary.json").read_text())["protocol"]["seed"] for folder in made_for(run)}
    assert seeds == {0, 5}


def test_fewer_ways_cut_the_head_and_more_are_refused(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(alone)
    assert main(["test", str(run), "task.ways=3"]) == 0
    (again,) = made_for(run)
    assert "3w1s" in again.parent.name
    capsys.readouterr()
    assert main(["test", str(run), "task.ways=8"]) == 2
    assert "trained for 5 ways; use at most 5" in capsys.readouterr().err
    assert made_for(run) == [again]


def test_a_metric_method_takes_any_ways(alone: Path) -> None:
    run = trained(alone, "algo=protonet")
    assert main(["test", str(run), "task.ways=12"]) == 0


def test_other_data(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(alone)
    assert main(["test", str(run), "data.world=3"]) == 0
    assert scores(made_for(run)[0]) != scores(run)
    assert main(["test", str(run), "data=sine"]) == 2
    assert "data=sine" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["train.steps=3", "model.width=8", "optim.lr=1", "algo=anil", "task.train.ways=3"])
def test_what_training_settled_stays(word: str, alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(alone)
    assert main(["test", str(run), word]) == 2
    assert "was settled when the run was trained" in capsys.readouterr().err
    assert not (run / "test").exists()


def test_it_is_the_best_checkpoint(alone: Path) -> None:
    run = trained(alone)
    best = torch.load(run / "best.pt", weights_only=True)
    for value in best["meta"]["weights"].values():
        value.zero_()
    torch.save(best, run / "best.pt")
    assert main(["test", str(run), "eval.test_episodes=7"]) == 0
    assert len(set(scores(made_for(run)[0]))) == 1  # a net of zeros guesses one class always


def test_a_classifier_of_other_training_classes(alone: Path) -> None:
    """Its head is of the classes it was trained on; at test a new one is fitted, however many the data has."""
    run = trained(alone, "algo=baseline", "algo.fit_steps=3")
    assert main(["test", str(run), "data.train_alphabets=35", "task.ways=6"]) == 0
    (made,) = made_for(run)
    assert len(scores(made)) == 6


def test_wrong_labels_at_test_alone(alone: Path) -> None:
    """The value holds although a file that sets it too is named after it."""
    run = trained(alone)
    assert main(["test", str(run), "task.label_noise=0.5", "task=5w5s"]) == 0
    (made,) = made_for(run)
    assert json.loads((made / "summary.json").read_text())["protocol"]["label_noise"] == 0.5
