"""The contracts between the rooms of the house: values that travel, and what an algorithm, engine and tracker answer.

Shape letters: T tasks, N ways, S support = N * shots, Q queries = N * queries, C H W image, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

Params = dict[str, Tensor]
Meta = dict[str, Params]
"""What an algorithm carries from step to step: {"weights": ...} and whatever else it learns, {"rates": ...}. One entry,
"buffers", is averaged over tasks instead of learned by gradient (running statistics); it may be absent."""

BUFFERS = "buffers"

Split = Literal["train", "val", "test"]
Kind = Literal["classes", "values"]  # what y is: class labels (int64), or real values
Sampler = Literal["episodes", "batches", "nothing"]
"""What an algorithm trains on: episodes; batches of single images labelled by their number among all training classes,
cut into support and query at will; or nothing, and everything is done at test."""


class Batch(NamedTuple):
    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task and its number; stacked along T outside algos/. Rows of x lie class by class."""

    support: Batch
    query: Batch
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks an episode for


class Aux(NamedTuple):
    """What a training objective hands back beside its value: metrics to log, and the new buffers."""

    metrics: dict[str, Tensor]
    buffers: Params


class Adapted(NamedTuple):
    """A task's own predictor. `stats` are the statistics to normalise with; empty: those of the batch at hand."""

    weights: Params
    stats: Params


class Net(Protocol):
    """A network as pure functions. Names are `body.*` and `head.*`; statistics are inputs and outputs, not hidden."""

    @property
    def module(self) -> nn.Module:
        """The same network as a torch module with .body and .head, for learn2learn; the functions never change it."""
        ...

    @property
    def momentum(self) -> float:
        """Share of the newest batch in running statistics."""
        ...

    def __call__(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        """Outputs, and the statistics each norm layer used: those of x, or `stats` where given."""
        ...

    def embed(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        """The same up to the head: embeddings x_BD."""
        ...

    def init_stats(self) -> Params:
        """Statistics before anything was seen: mean 0, variance 1, one entry per norm layer and moment."""
        ...


StepFn = Callable[[Any, Any, Any], Any]
Unroll = Callable[[StepFn, Any, Any, int], Any]
"""unroll(step, carry, consts, num_steps): carry_k+1 = step(carry_k, consts, k). The engine decides how it is done, so
all that a step differentiates through is in `carry` or `consts`, never in a closure."""


class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters; pure functions of ONE task."""

    kinds: ClassVar[frozenset[Kind]]  # the task kinds it is meant for
    uses_head: ClassVar[bool]  # a learned head fixes the number of ways; metric methods have none
    trains_on: ClassVar[Sampler]

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        """`weights` are the net's; `seed` is for what the algorithm learns beside them."""
        ...

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]: ...

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Any: ...

    def predict(self, net: Net, meta: Meta, adapted: Any, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Engine:
    """An algorithm executed on stacked tasks."""

    meta_grad: Callable[[Meta, Episode, int], tuple[Meta, Aux]]  # mean over tasks; the gradient has no "buffers" entry
    scores: Callable[[Meta, Episode], Tensor]  # outputs_TQN, no graph kept


class Tracker(Protocol):
    """Where a run's numbers and pictures go. A tracker never ends a run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None: ...

    def close(self, exit_code: int) -> None: ...


class Artifacts(NamedTuple):
    """The files of a finished run that a tracker may want to show or keep."""

    curves: Path
    episodes: Path
    scores: Path
    best: Path
    config: Path
