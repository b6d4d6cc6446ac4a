"""How a prediction is measured: the table MEASURES has one row for each measure.

Training, the result of a run, trackers, pictures and tables read this table. Shape letters as in types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from metarun.types import Kind

Z_95 = 1.959963984540054  # standard normal, two-sided 95 %


class Estimate(NamedTuple):
    """One measure over many episodes."""

    value: float
    ci95: float | None  # half width of the 95 % confidence interval; None for a pooled measure
    per_episode: Tensor  # one row an episode, float64, on the CPU


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str  # in metrics and summaries: val/NAME, test/NAME
    title: str  # for people
    kind: Kind  # the task kind it belongs to
    of_tasks: Callable[[Tensor, Tensor], Tensor]  # (outputs_TQN, y_TQ) to one row a task, float64
    pooled: Callable[[Tensor], float] | None  # (sum of all rows) to the value; None: the mean of rows of one number
    higher_is_better: bool
    unit: str  # "%" or nothing
    digits: int  # after the point

    def better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than

    def text(self, value: float, ci95: float | None = None) -> str:
        """As papers print it: 92.31 +- 0.52 %."""
        scale = 100 if self.unit == "%" else 1
        numbers = " +- ".join(f"{scale * each:.{self.digits}f}" for each in (value, ci95) if each is not None)
        return f"{numbers} {self.unit}".rstrip()

    def estimate(self, per_episode: Tensor) -> Estimate:
        """The value over the given episodes, one row each; with an interval where the value is a mean over episodes."""
        if self.pooled is not None:
            return Estimate(self.pooled(per_episode.sum(0)), None, per_episode)
        count = len(per_episode)
        assert count > 1, f"an interval needs more than {count} episode"
        half = Z_95 * per_episode.std(correction=1).item() / count**0.5
        return Estimate(per_episode.mean().item(), half, per_episode)


def accuracy(outputs_TQN: Tensor, y_TQ: Tensor) -> Tensor:
    return (outputs_TQN.argmax(-1) == y_TQ).double().mean(-1)


def squared_error(outputs_TQN: Tensor, y_TQN: Tensor) -> Tensor:
    return (outputs_TQN.double() - y_TQN.double()).square().flatten(1).mean(-1)


ECE_BINS = 15  # as Guo 2017


def calibration_gaps(outputs_TQN: Tensor, y_TQ: Tensor) -> Tensor:
    """[T, 1 + bins]: the number of queries, and for each bin of confidence the sum of (correct - confidence) in it."""
    confidence_TQ, answer_TQ = outputs_TQN.double().softmax(-1).max(-1)
    bin_TQ = (confidence_TQ * ECE_BINS).ceil()  # bin m, from 1, holds confidences in ((m - 1) / bins, m / bins]
    in_bin_TQM = bin_TQ.unsqueeze(-1) == bin_TQ.new_tensor(range(1 + ECE_BINS))
    gaps_TM = (((answer_TQ == y_TQ).double() - confidence_TQ).unsqueeze(-1) * in_bin_TQM).sum(1)
    gaps_TM[:, 0] = y_TQ.shape[1]
    return gaps_TM


def expected_calibration_error(gaps_M: Tensor) -> float:
    """Guo 2017, equation 3: the mean over all queries of the gap between accuracy and confidence in their bin."""
    return (gaps_M[1:].abs().sum() / gaps_M[0]).item()


# The first row of a kind is its primary measure: it picks the best checkpoint.
MEASURES = (
    Measure("acc", "accuracy", "classes", accuracy, None, higher_is_better=True, unit="%", digits=2),
    Measure(
        "ece",
        "calibration error (ECE)",
        "classes",
        calibration_gaps,
        expected_calibration_error,
        higher_is_better=False,
        unit="%",
        digits=2,
    ),
    Measure("mse", "mean squared error", "values", squared_error, None, higher_is_better=False, unit="", digits=4),
)


def measures_for(kind: Kind) -> tuple[Measure, ...]:
    """All measures of a task kind, the primary one first."""
    return tuple(measure for measure in MEASURES if measure.kind == kind)


def primary_measure(kind: Kind) -> Measure:
    return measures_for(kind)[0]


def primary_among(names: Iterable[str], where: str) -> Measure | None:
    """The primary measure whose `where/NAME` is among the names: how a summary or a metrics file tells its kind."""
    known = set(names)
    return next((measure for measure in MEASURES if f"{where}/{measure.name}" in known), None)
