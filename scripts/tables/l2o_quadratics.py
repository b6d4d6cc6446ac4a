"""Compares an optimizer learned on random quadratics with gradient descent at its best rate.

python scripts/tables/l2o_quadratics.py    # some minutes on one core; writes docs/l2o_quadratics.csv and .png

The experiment of Andrychowicz 2016 (arXiv 1606.04474), section 3.1: f(theta) = |W theta - y|^2, where W (10 x 10) and y
are drawn from the standard normal distribution; every task is a new function. The network is a linear layer without
bias: theta is its weight, the rows of W are inputs, y are targets. Unlike the paper, theta starts at 0 for both, the
meta-gradient goes through all 20 steps of a task, gradients are preprocessed, and descent minimises f / 10.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from metarun.algos.descent import Descent, RuleState
from metarun.algos.l2o import L2O
from metarun.algos.maml import MAML
from metarun.engine.vmap import Vmap
from metarun.models.functional import BodyAndHead, FunctionalNet, functional_net
from metarun.types import Batch, Episode, Meta

OUT = Path(__file__).parents[2] / "docs"
SIZE, HORIZON = 10, 20
META_STEPS, META_BATCH, LR = 600, 128, 1e-2  # Adam; a cosine takes its rate to 0
HELD_OUT, EVERY = 1000, 20
RATES = [0.05 * 1.1**i for i in range(22)]  # 0.05 to 0.37
COLUMNS = ("mean", "p10", "median", "p90")
COMMON: dict[str, Any] = {
    "test_steps": HORIZON,
    "derivatives": "first",
    "second_order_from": 0,
    "loss_reduction": "mean",
    "adapt": ("*",),
    "outer_loss_on": "support",
    "bn": "batch",
    "bn_weights": "shared",
}
ENGINE = Vmap(chunk=None, memory="graph", compile="off", cuda_graph="off")
LEARNED = L2O(**COMMON, steps=HORIZON, inner_lr=0.1, multi_step_loss_until=10**9, hidden=20, p=10.0, descent=0.0)
DESCENT = MAML(**COMMON, steps=HORIZON, inner_lr=0.1, multi_step_loss_until=0, rates="fixed")


def quadratics(seed: int, count: int) -> Episode:
    dice = torch.Generator().manual_seed(seed)
    data = Batch(
        torch.randn(count, SIZE, SIZE, generator=dice),
        torch.randn(count, SIZE, 1, generator=dice),
    )
    return Episode(data, data, torch.arange(count))


def zero_net() -> tuple[FunctionalNet, Meta]:
    net, weights = functional_net(BodyAndHead(nn.Flatten(), nn.Linear(SIZE, 1, bias=False)))
    return net, {"weights": {name: torch.zeros_like(value) for name, value in weights.items()}}


def meta_train(seed: int, meta_steps: int) -> Iterator[tuple[int, float, Meta]]:
    """Meta-trains; yields every EVERY steps (step, mean f over the inner steps, learned values)."""
    net, start = zero_net()
    meta = LEARNED.init(net, start["weights"], seed)
    engine = ENGINE.build(LEARNED, net)
    parameters = [value for entry, group in meta.items() if entry != "weights" for value in group.values()]
    outer = torch.optim.Adam(parameters, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, meta_steps)
    for step in range(1, meta_steps + 1):
        grads, aux = engine.meta_grad(meta, quadratics((seed + 1) * 10**6 + step, META_BATCH), 0)
        found = [value for entry, group in grads.items() if entry != "weights" for value in group.values()]
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        outer.step()
        schedule.step()
        if step % EVERY == 0 or step == meta_steps:
            yield step, SIZE * aux.metrics["loss"].item(), meta


def losses(algo: Descent[RuleState], meta: Meta, functions: Episode, steps: int) -> Tensor:
    """f of each function after `steps` inner steps."""
    net, _ = zero_net()
    if not steps:
        return functions.query.y.square().sum(dim=(1, 2))
    out = ENGINE.build(replace(algo, test_steps=steps), net).scores(meta, functions)
    return (out - functions.query.y).square().sum(dim=(1, 2))


def best_rate(functions: Episode) -> float:
    """The rate with the lowest median f after HORIZON steps. A mean would be set by the few functions that diverge."""
    _, start = zero_net()
    ends = {rate: losses(replace(DESCENT, inner_lr=rate), start, functions, HORIZON).median() for rate in RATES}
    best = min(ends, key=lambda rate: ends[rate].item())
    assert best not in (RATES[0], RATES[-1]), f"the best rate, {best}, is at the end of RATES"
    return best


def curve(algo: Descent[RuleState], meta: Meta, functions: Episode) -> list[list[float]]:
    """Rows of COLUMNS, after 0 to HORIZON steps."""
    rows = [losses(algo, meta, functions, steps) for steps in range(HORIZON + 1)]
    return [[f_T.mean().item(), *(f_T.quantile(share).item() for share in (0.1, 0.5, 0.9))] for f_T in rows]


def draw(curves: dict[str, list[list[float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    steps = range(HORIZON + 1)
    for (name, points), colour in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        _, low, middle, high = zip(*points, strict=True)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=colour, label=name, marker="o", markersize=3)
    axes.set(yscale="log", xlabel="step", ylabel=r"$|W\theta - y|^2$", xlim=(0, HORIZON), xticks=range(0, 21, 5))
    axes.set_title(f"{HELD_OUT} held-out quadratics: median, and 10 to 90 %", fontsize=10)
    axes.grid(color="#E6E6E6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    _, start = zero_net()
    learned = start
    for step, loss, learned in meta_train(0, META_STEPS):  # noqa: B007  # the last one is the result
        print(f"meta-step {step}/{META_STEPS}  f after {HORIZON} steps {loss:.3f}", flush=True)
    rate = best_rate(quadratics(1, HELD_OUT))
    held_out = quadratics(2, HELD_OUT)
    curves = {
        "learned optimizer": curve(LEARNED, learned, held_out),
        f"gradient descent, rate {rate:.3g}, best of {len(RATES)}": curve(
            replace(DESCENT, inner_lr=rate), start, held_out
        ),
    }
    OUT.mkdir(exist_ok=True)
    with (OUT / "l2o_quadratics.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("optimizer", "step", *COLUMNS))
        for name, points in curves.items():
            table.writerows((name, step, *(f"{value:.5g}" for value in point)) for step, point in enumerate(points))
    draw(curves, OUT / "l2o_quadratics.png")
    for name, points in curves.items():
        print(f"{name}: mean {points[-1][0]:.3f}, median {points[-1][2]:.3f} after {HORIZON} steps")


if __name__ == "__main__":
    main()
