"""The contracts between the rooms of the house: values that travel, and what an algorithm, an engine, a tracker offer.

A name ends in the letters of its tensor's dimensions: `logits_TQN` is [T, Q, N]. The letters, in the whole house:

    T  tasks                        C H W  channels, height, width of an image
    N  ways: classes of a task      D      features of an item: an embedding, a row of a table
    K  shots: items of a class      B      items of a batch, of any classes
    S  support items, N * K         Q      query items, N * queries
    P  parts of equal size          I      items chosen within a class

Inside algos/ there is ONE task and no T. Everywhere else T comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

Params = dict[str, Tensor]
"""Tensors by name: the weights of a network, or any other group of learned values."""

Meta = dict[str, Params]
"""What an algorithm carries from step to step, group by group: {"weights": ...} and whatever else it learns, such as
{"rates": ...}. One group, "buffers", is not learned by gradient: it is averaged over tasks (running statistics). It is
absent where an algorithm has none."""

BUFFERS = "buffers"

Split = Literal["train", "val", "test"]
"""One of the three disjoint sets of classes of a data set."""

Kind = Literal["classes", "values"]
"""What y is. "classes": class labels (int64), the task is classification. "values": real values, the task is
regression."""

Sampler = Literal["episodes", "batches", "nothing"]
"""What an algorithm trains on. "episodes": tasks. "batches": single items, labelled by the number of their class among
all training classes; the cut into support and query means nothing. "nothing": there is no training; all work is done
at test."""


class Batch(NamedTuple):
    """Items and their targets: x_BCHW or x_BD, y_B (classes) or y_B1 (values)."""

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task: what to adapt to, what to predict, and the task's number. Rows of x are sorted by class.

    Outside algos/ an episode holds T tasks of one shape: support.x_TSCHW, support.y_TS, query.x_TQCHW, index_T.
    """

    support: Batch
    query: Batch
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks an episode for


class Aux(NamedTuple):
    """What a training objective returns beside its value."""

    metrics: dict[str, Tensor]  # scalars to log, by name
    buffers: Params  # the new values of Meta["buffers"]; empty where there are none


class Adapted(NamedTuple):
    """Weights adapted to one task, and the statistics that its normalisation layers use (empty: the batch's own)."""

    weights: Params
    stats: Params


class Net(Protocol):
    """A network as pure functions of its weights.

    Weights are named `body.*` (the embedding) and `head.*` (the last layer). Statistics of normalisation layers are
    inputs and outputs of the functions, never hidden state.
    """

    @property
    def module(self) -> nn.Module:
        """The same network as a torch module with .body and .head, for learn2learn; the functions never change it."""
        ...

    @property
    def momentum(self) -> float:
        """Weight of the newest batch in running statistics."""
        ...

    def __call__(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        """Outputs for x, and the statistics that each normalisation layer used: `stats`, or those of x if None."""
        ...

    def embed(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        """Embeddings z_BD, the input of the head, and the statistics that were used."""
        ...

    def init_stats(self) -> Params:
        """Initial statistics, one entry for each normalisation layer and moment: mean 0, variance 1."""
        ...


Carry = TypeVar("Carry")
Consts = TypeVar("Consts")
Adaptation = TypeVar("Adaptation")

StepIndex = int | Tensor
"""The number k of an inner step: an int, or an int64 scalar where one traced step serves every k."""

StepFn = Callable[[Carry, Consts, StepIndex], Carry]
"""One inner step: (carry_k, consts, k) -> carry_k+1. Carry and consts are pytrees of tensors."""


class Unroll(Protocol):
    """How an engine runs an inner loop of `num_steps` steps: carry_k+1 = step(carry_k, consts, k).

    The engine may store the graph, checkpoint it, or run the adjoint by hand. So every tensor that a step
    differentiates through must be in `carry` or `consts`, never in a closure of `step`.
    """

    def __call__(self, step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry: ...


class Algorithm(Protocol[Adaptation]):
    """A meta-learning algorithm: a frozen dataclass of hyper-parameters, with pure functions of ONE task.

    `Adaptation` is what it makes of a support set and predicts with: a NamedTuple of tensors, such as Adapted.
    """

    kinds: ClassVar[frozenset[Kind]]  # the kinds of task that it can learn
    uses_head: ClassVar[bool]  # a learned head fixes the number of ways; metric methods have none
    trains_on: ClassVar[Sampler]

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        """The first Meta. `weights` are the network's own; `seed` is for all else that the algorithm initialises."""
        ...

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        """The training objective of one task at meta-step `step`. Its gradient by `meta` is the meta-gradient."""
        ...

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Adaptation:
        """Adapts to a support set, at test time."""
        ...

    def predict(self, net: Net, meta: Meta, adapted: Adaptation, x: Tensor) -> Tensor:
        """Predictions for query items: logits_QN, or values_Q1 for regression."""
        ...


@dataclass(frozen=True)
class Engine:
    """An algorithm and a network, executed on episodes of T tasks."""

    meta_grad: Callable[[Meta, Episode, int], tuple[Meta, Aux]]
    """(meta, episode, meta-step) -> gradient and Aux, both the mean over tasks. The gradient has no "buffers" group."""
    scores: Callable[[Meta, Episode], Tensor]
    """(meta, episode) -> predictions for the query items, outputs_TQN, without a graph."""
    notes: Sequence[str] = ()
    """What was not executed as configured, a line each. It may grow while the engine is in use: read it at the end."""


class EngineChoice(Protocol):
    """A choice of engine with its settings, as `engine=...` names it: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # so that fields() and replace() take it

    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        """ValueError: this engine cannot execute this algorithm or network."""
        ...


class Tracker(Protocol):
    """Where the numbers and pictures of a run go: a console, a file, a server. A tracker never ends a run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, object], artifacts: Artifacts) -> None:
        """Called once, when the run has its result."""
        ...

    def close(self, exit_code: int) -> None:
        """Called last, also of a run that failed or was interrupted."""
        ...


class Artifacts(NamedTuple):
    """The files of a finished run that a tracker may show or keep."""

    curves: Path
    episodes: Path
    scores: Path
    best: Path
    config: Path
