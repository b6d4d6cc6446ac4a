"""Each measure against closed forms, and the questions the table answers."""

from __future__ import annotations

import math

import pytest
import torch

from metarun.measures import ECE_BINS, MEASURES, Measure, measures_for, primary_among, primary_measure

ACCURACY, SQUARED_ERROR = primary_measure("classes"), primary_measure("values")


def test_accuracy_and_error_of_known_outputs() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]]])
    assert ACCURACY.of_tasks(logits, torch.tensor([[0, 1, 1, 0]])).tolist() == [0.5]
    outputs, y = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]]), torch.tensor([[[0.0], [4.0]], [[0.0], [1.0]]])
    assert SQUARED_ERROR.of_tasks(outputs, y).tolist() == [2.5, 0.5]


def test_interval_is_the_normal_one() -> None:
    score = ACCURACY.estimate(torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64))
    assert score.value == pytest.approx(0.5)
    assert score.ci95 == pytest.approx(1.959963985 * math.sqrt(0.13) / math.sqrt(3))


def test_interval_covers_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(2000, 200, generator=generator, dtype=torch.float64)
    scores = map(ACCURACY.estimate, samples)
    hits = sum(abs(score.value - 0.5) <= score.ci95 for score in scores if score.ci95 is not None)
    assert 0.93 < hits / 2000 < 0.97


def test_better_follows_the_measure() -> None:
    assert ACCURACY.better(0.6, 0.5)
    assert not ACCURACY.better(0.5, 0.5)
    assert SQUARED_ERROR.better(0.4, 0.5)


@pytest.mark.parametrize(
    ("measure", "value", "ci95", "text"),
    [
        (ACCURACY, 0.92314, 0.00518, "92.31 +- 0.52 %"),
        (ACCURACY, 1.0, None, "100.00 %"),
        (SQUARED_ERROR, 0.03124, 0.004, "0.0312 +- 0.0040"),
    ],
)
def test_scores_read_as_in_papers(measure: Measure, value: float, ci95: float | None, text: str) -> None:
    assert measure.text(value, ci95) == text


def test_the_primary_measure_is_the_first_of_its_kind_and_a_mean_over_episodes() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    for kind in ("classes", "values"):
        primary = primary_measure(kind)
        assert measures_for(kind)[0] is primary
        assert primary.pooled is None
        assert primary_among([f"test/{measure.name}" for measure in reversed(measures_for(kind))], "test") is primary
    assert primary_among(["test/ci95", "val/acc"], "test") is None


def ece(outputs_TQN: torch.Tensor, y_TQ: torch.Tensor) -> float:
    measure = next(measure for measure in MEASURES if measure.name == "ece")
    return measure.estimate(measure.of_tasks(outputs_TQN, y_TQ)).value


def test_calibration_error() -> None:
    """Closed forms, Guo's definition as a plain loop, and what must not matter."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 100, 5, generator=generator)
    chances = logits.double().softmax(-1)
    calibrated = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(200, 100)
    assert ece(logits, calibrated) < (ECE_BINS * 0.25 / 20_000) ** 0.5  # binomial noise of all bins together
    assert ece(4 * logits, calibrated) > 0.1

    constant = torch.tensor([0.7, 0.2, 0.1]).log().expand(4, 25, 3)  # confidence 0.7, accuracy 0.4
    answers = (torch.arange(100) >= 40).long().view(4, 25)
    assert ece(constant, answers) == pytest.approx(abs(0.4 - 0.7), abs=1e-7)
    lowest = torch.full((4, 25, 2), torch.finfo(torch.float32).min)  # labels that are absent
    assert ece(torch.cat([constant, lowest], -1), answers) == ece(constant, answers)

    assert ece(torch.zeros(4, 25, 32), torch.ones(4, 25).long()) == 1 / 32  # all wrong, in the lowest bin

    confidence, correct = (part.flatten().numpy() for part in (chances.max(-1)[0], logits.argmax(-1) == calibrated))
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert ece(logits, calibrated) == pytest.approx(expected, abs=1e-12)

    order = torch.randperm(200, generator=generator)
    assert ece(logits[order], calibrated[order]) == pytest.approx(expected, abs=1e-12)
    assert ece(logits.view(50, 400, 5), calibrated.view(50, 400)) == pytest.approx(expected, abs=1e-12)
