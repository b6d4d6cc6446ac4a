"""A finished run as an object: its configuration, its results, and its network, which adapts to new tasks."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from metarun.config.compose import composed_from_stored
from metarun.config.schema import RunConfig, check_config
from metarun.engine.unroll.stored import unroll_graph
from metarun.errors import RunError
from metarun.run.build import DTYPE, configured_net, open_data
from metarun.run.checkpoint import read_checkpoint
from metarun.run.directory import read_summary, run_dir
from metarun.run.item_format import ItemFormat, item_format_of, read_item_format
from metarun.track.console import say
from metarun.types import Adaptation, Algorithm, Batch, Meta, Net


@dataclass(frozen=True)
class AdaptedTask(Generic[Adaptation]):
    """A run's network after it adapted to one support set."""

    run: FinishedRun
    algorithm: Algorithm[Adaptation]
    adapted: Adaptation  # what the algorithm makes of a support set
    ways: int | None  # labels are 0 .. ways - 1; None: targets are real values

    def predict(self, x: Tensor | ArrayLike, normalised: bool = False) -> Tensor:
        """Logits [Q, ways], or values [Q, 1]. With bn=batch (transductive) they depend on all of x together."""
        x_Q = self.run.inputs(x, normalised)
        with torch.no_grad():
            outputs = self.algorithm.predict(self.run.net, self.run.meta, self.adapted, x_Q)
        return outputs if self.ways is None else outputs[:, : self.ways]


@dataclass(frozen=True)
class FinishedRun:
    """What a run directory holds, without the data set it was made with."""

    path: Path
    config: RunConfig  # as the run was made, with `device` as it is here
    summary: Mapping[str, Any]
    scores: Sequence[float]  # of each test episode: accuracy or squared error
    metrics: Sequence[Mapping[str, float]]  # the rows of metrics.jsonl
    net: Net
    meta: Meta  # the best checkpoint
    item_format: ItemFormat

    @property
    def network(self) -> nn.Module:
        """The network as a torch module with the best weights (before adaptation)."""
        return self.net.module

    def adapt(
        self, support_x: Tensor | ArrayLike, support_y: Tensor | ArrayLike, normalised: bool = False
    ) -> AdaptedTask[Any]:
        """Adapts to a support set as the meta-test does.

        Raw items are uint8 images [S, C, H, W], the same as floats from 0 to 1, or rows of features [S, D]; with
        normalised=True they are network inputs. Labels are 0, 1, ...; targets of regression are [S, 1].
        """
        x_S = self.inputs(support_x, normalised)
        y_S = _as_tensor(support_y).to(self.config.device)
        if len(x_S) != len(y_S):
            raise RunError(f"{len(x_S)} support items and {len(y_S)} labels: give one label for each item")
        if self.config.kind == "values":
            batch, ways = Batch(x_S, y_S.to(DTYPE).reshape(len(y_S), -1)), None
        else:
            batch, ways = self._labelled(x_S, y_S)
        with torch.no_grad():
            adapted = self.config.algo.adapted(self.net, self.meta, batch, unroll_graph)
        return AdaptedTask(self, self.config.algo, adapted, ways)

    def inputs(self, x: Tensor | ArrayLike, normalised: bool = False) -> Tensor:
        """Network inputs of raw items."""
        x_B = _as_tensor(x)
        if normalised:
            return x_B.to(self.config.device, DTYPE)
        return self.item_format.network_inputs(x_B, self.config.device, DTYPE)

    def _labelled(self, x_S: Tensor, y_S: Tensor) -> tuple[Batch, int]:
        """The support set class by class, as episodes have it, and its number of ways."""
        if y_S.is_floating_point() or y_S.dim() != 1 or not len(y_S) or int(y_S.min()) < 0:
            raise RunError("support labels: need whole numbers 0, 1, ..., one for each item")
        ways = int(y_S.max()) + 1
        head = self.meta["weights"].get("head.bias")
        if self.config.algo.uses_head and head is not None and ways > len(head):
            raise RunError(f"support labels up to {ways - 1}: the head of this run was trained for {len(head)} ways")
        order = y_S.argsort(stable=True)
        return Batch(x_S[order], y_S[order].long()), ways


def load_run(folder: str | PathLike[str], device: str = "auto") -> FinishedRun:
    """A finished run. `device`: auto, cpu, cuda or cuda:NUMBER, whatever the run was made on."""
    run = run_dir(Path(folder))
    summary = read_summary(run)
    if summary is None or not run.best.exists():
        state = "is not finished; the command that began it goes on with it" if run.config.exists() else "holds no run"
        raise RunError(f"{folder}: {state}; a run directory looks like outputs/glyphs-5w1s/maml-1a2b3c4d/seed0")
    content = read_checkpoint(run.best, torch.device("cpu"))
    about = content["about"]
    composed = composed_from_stored(about["config"], about["choices"])
    plain = {**composed.plain, "device": device, "devices": "auto", "tf32": False}
    config = dataclasses.replace(check_config(plain, composed.choices), plain=composed.plain)
    item_format = read_item_format(about["item"]) if "item" in about else item_format_of(open_data(config, say))
    meta = {
        group: {name: value.to(config.device) for name, value in params.items()}
        for group, params in content["meta"].items()
    }
    net = _trained_net(config, meta, item_format)
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    with run.scores.open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    return FinishedRun(run.path, config, summary, scores, metrics, net, meta, item_format)


def _trained_net(config: RunConfig, meta: Meta, item_format: ItemFormat) -> Net:
    """The network, whose module has the trained weights."""
    head = meta["weights"].get("head.bias")
    outputs = config.task.train.ways_range[1] if config.kind == "classes" else 1
    net, _ = configured_net(config, item_format.shape, outputs if head is None else len(head))
    with torch.no_grad():
        for name, parameter in net.module.named_parameters():
            if name in meta["weights"]:
                parameter.copy_(meta["weights"][name])
    return net


def _as_tensor(value: Tensor | ArrayLike) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
