"""Whole runs: what they leave, that they are found finished, and that nothing lands where it should not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from metarun.cli.main import main
from metarun.measures import measures_for
from metarun.run.directory import locked
from support.runs import TINY, only_run, outcome


def test_a_run_leaves_everything(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    run = only_run(alone / "outputs")
    assert run.parent.name.startswith("maml-")
    assert run.parent.parent.name == "glyphs-5w1s"
    names = "config.yaml metrics.jsonl last.pt best.pt test_scores.csv summary.json episodes.png curves.png curves.svg"
    for name in names.split():
        assert (run / name).stat().st_size > 0
    summary = json.loads((run / "summary.json").read_text())
    assert {f"test/{measure.name}" for measure in measures_for("classes")} <= summary.keys()
    assert {"test/acc", "test/ci95", "test/episodes", "val/best_acc", "best_step"} <= summary.keys()
    assert {"time/total_s", "time/tasks_per_s"} <= summary.keys()
    protocol = summary["protocol"]
    assert (protocol["ways"], protocol["shots"], protocol["queries"], protocol["bn"]) == (5, 1, 2, "batch")
    assert (protocol["data"], protocol["split"], protocol["steps"], protocol["seed"]) == ("glyphs", "test", 12, 0)
    assert protocol["versions"]["torch"] == torch.__version__.split("+")[0]
    rows = list(csv.DictReader((run / "test_scores.csv").read_text().splitlines()))
    scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    assert [int(row["index"]) for row in rows] == list(range(6))
    assert summary["test/acc"] == pytest.approx(float(scores.mean()), abs=1e-12)
    assert summary["test/ci95"] == pytest.approx(1.959964 * float(scores.std()) / 6**0.5, rel=1e-6)
    out = capsys.readouterr().out
    assert f"{100 * summary['test/acc']:.2f} +- {100 * summary['test/ci95']:.2f} % (6 episodes)" in out
    assert all(measure.title in out for measure in measures_for("classes"))
    assert "\x1b" not in out


def test_checkpoints_speak_for_themselves(alone: Path) -> None:
    assert main(TINY) == 0
    run = only_run(alone / "outputs")
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["about"]["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert best["about"]["protocol"]["ways"] == 5
    assert best["about"]["choices"]["algo"] == "maml"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = {row["step"]: row["val/acc"] for row in rows if "val/acc" in row}
    assert sorted(validated) == [4, 8, 12]
    first_best = min(step for step, value in validated.items() if value == max(validated.values()))
    assert best["step"] == first_best
    assert json.loads((run / "summary.json").read_text())["best_step"] == first_best


def test_the_pace_is_that_of_training_alone(alone: Path) -> None:
    assert main([*TINY, "eval.test_episodes=600"]) == 0
    run = only_run(alone / "outputs")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row["time/tasks_per_s"] for row in rows if row["step"] == 12 and "time/tasks_per_s" in row]
    assert json.loads((run / "summary.json").read_text())["time/tasks_per_s"] == pytest.approx(last[0], rel=0.2)


def test_the_same_command_shows_the_result_again(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    run = only_run(alone / "outputs")
    before = {file: file.stat().st_mtime_ns for file in run.iterdir() if file.name != ".lock"}
    capsys.readouterr()
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert "this run is finished" in out
    assert "test accuracy" in out
    assert {file: file.stat().st_mtime_ns for file in run.iterdir() if file.name != ".lock"} == before


def test_two_runs_of_one_seed_are_bitwise_equal(alone: Path) -> None:
    for out in ("a", "b"):
        assert main([*TINY, f"out={out}", "algo=reptile", "algo.test_steps=3"]) == 0
    assert outcome(only_run(alone / "a")) == outcome(only_run(alone / "b"))


def test_another_configuration_has_another_place(alone: Path) -> None:
    for words in ([], ["train.outer=[{clip_by_value: 1.0}]"], ["algo=anil"], ["seed=1"], ["eval.tasks_at_once=3"]):
        assert main([*TINY, "train.steps=2", *words]) == 0
    assert len(list((alone / "outputs").glob("*/*/seed*/summary.json"))) == 5
    assert len(list((alone / "outputs").glob("*/*"))) == 4


def test_a_changed_configuration_in_the_same_place_is_refused(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    config = only_run(alone / "outputs") / "config.yaml"
    config.write_text(config.read_text().replace("steps: 12", "steps: 13"))
    assert main(TINY) == 1
    assert "another configuration lies here (differs in train)" in capsys.readouterr().err


def test_a_second_process_is_refused(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    run = only_run(alone / "outputs")
    with locked(run):
        assert main(TINY) == 1
    assert "another process is at work here" in capsys.readouterr().err


def test_non_finite_loss_names_step_tasks_and_checkpoint(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith("model")]
    assert main([*words, "data=sine", "task.queries=2", "algo.inner_lr=1e30"]) == 1
    err = capsys.readouterr().err
    assert "step 0: the loss or its gradient is not finite, on training tasks 0 to 1; no checkpoint" in err
    assert len(err.splitlines()) == 1
    assert main([*words, "data=sine", "task.queries=2", "optim=sgd", "optim.lr=1e12", "train.save_every=1"]) == 1
    err = capsys.readouterr().err
    found = next(int(word.strip(":")) for word in err.split() if word.strip(":").isdigit())
    assert found > 0
    assert f"training tasks {2 * found} to {2 * found + 1}; the last good checkpoint is outputs/" in err
    last = next((alone / "outputs").glob("*/*/seed0/last.pt"))
    content = torch.load(last, weights_only=True)
    assert content["step"] <= found
    assert all(value.isfinite().all() for value in content["meta"]["weights"].values())


def test_skipped_steps_are_counted_and_the_run_gives_up(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith("model")]
    words += ["data=sine", "task.queries=2", "train.outer=[{skip_not_finite: 5}]", "train.log_every=1"]
    assert main(words) == 0
    assert json.loads((only_run(alone / "outputs") / "summary.json").read_text())["train/skipped"] == 0
    assert main([*words, "algo.inner_lr=1e30", "out=never"]) == 1
    err = capsys.readouterr().err
    assert "step 4: the loss or its gradient is not finite, on training tasks 8 to 9" in err
    assert "and skip_not_finite gives up after 5 in a row" in err
    assert len(err.splitlines()) == 1
    rows = [json.loads(line) for line in (only_run(alone / "never") / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/skipped"] for row in rows if "train/skipped" in row] == [1, 2, 3, 4]
    assert all(row["train/loss"] is None for row in rows if "train/skipped" in row)


def test_the_average_of_the_weights_is_what_is_validated_kept_and_tested(alone: Path) -> None:
    chain = "train.outer=[{moving_average: 0.9}]"
    assert main([*TINY, chain, "out=trained"]) == 0
    assert main([*TINY, chain, "eval.weights=average", "out=average"]) == 0
    trained, average = (
        torch.load(only_run(alone / out) / "last.pt", weights_only=True) for out in ("trained", "average")
    )
    for name, value in trained["meta"]["weights"].items():
        assert torch.equal(value, average["meta"]["weights"][name])  # the training is the same
    best = torch.load(only_run(alone / "average") / "best.pt", weights_only=True)
    [memory] = best["outer"]
    for place, value in enumerate(best["meta"]["weights"].values()):
        assert torch.allclose(value, memory["sum"][place] / (1 - 0.9 ** best["step"]), rtol=1e-6)
    summary = json.loads((only_run(alone / "average") / "summary.json").read_text())
    assert summary["protocol"]["weights"] == "average"
    assert summary["protocol"]["outer"] == [{"moving_average": 0.9}]


def test_an_unwritable_place_is_named(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (alone / "file").write_text("")
    assert main([*TINY, "out=file"]) == 1
    assert "out=file" in capsys.readouterr().err


def test_sine_is_scored_by_squared_error(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith("model")]
    assert main([*words, "data=sine", "model=mlp", "algo=maml"]) == 0
    run = only_run(alone / "outputs")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test/mse"] > 0
    assert summary["val/best_mse"] > 0
    assert (run / "episodes.png").stat().st_size > 0
    assert "mean squared error" in capsys.readouterr().out


def test_a_sweep_never_mixes(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "seed=0,1,2", "algo=maml,protonet", *TINY, "train.steps=2"]) == 0
    runs = sorted((alone / "outputs").glob("glyphs-5w1s/*/seed*"))
    assert [(run.parent.name.split("-")[0], run.name) for run in runs] == [
        (algo, f"seed{seed}") for algo in ("maml", "protonet") for seed in (0, 1, 2)
    ]
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["seed"] == int(run.name[-1])
        assert config["algo"]["_target_"].endswith("MAML" if run.parent.name.startswith("maml") else "ProtoNet")
        assert (run / "summary.json").exists()
    assert "run 6 of 6" in capsys.readouterr().out


def test_a_failed_run_of_a_sweep_does_not_stop_the_others(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith("model")]
    assert main(["-m", *words, "data=sine", "algo.inner_lr=1e30,0.01"]) == 1
    assert "1 runs failed" in capsys.readouterr().err
    assert len(list((alone / "outputs").glob("*/*/seed0/summary.json"))) == 1
