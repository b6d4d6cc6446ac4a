"""Compares MAML and Meta-Weight-Net under wrong support labels, over the same inner rates; writes docs/label_noise.md.

python scripts/tables/label_noise.py [--steps 500] [--seeds 0,1,2] [--noise 0.0,0.4] [--rates 0.15,0.5] [KEY=VALUE ...]

Finished runs are kept. Bold: the rate that is best on validation, for each noise and algorithm.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from metarun.cli.main import main as metarun
from metarun.config.compose import compose
from metarun.config.schema import check_config

ALGOS = ("maml", "metaweightnet")
INNER = ("algo.adapt=[head.*]", "algo.steps=10", "algo.test_steps=10", "algo.loss_reduction=mean")
SMALL = ("model.pooling=flatten", "train.meta_batch=8", "eval.val_episodes=200", "train.log_every=50")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "label_noise.md"
TEXT = """# Wrong labels in the support set

Written by `python scripts/tables/label_noise.py` from the summaries of its runs; no number here was typed. glyphs,
5-way 5-shot. A support label is wrong with the given probability, in training, validation and test tasks; query labels
are right. Both algorithms adapt the head alone, by ten inner steps, which suffices to fit wrong labels. Means over
seeds with their standard deviation; bold: the inner rate that is best on validation, for each algorithm and noise.

    metarun algo=NAME {overrides}

{table}
"""
HEADER = ("label noise", "algo", "inner_lr", "meta-steps", "seeds", "val best", "test")


class Row(NamedTuple):
    noise: float
    algo: str
    rate: float
    summaries: list[dict[str, Any]]

    @property
    def val(self) -> float:
        return mean(self._values("val/best_acc"))

    def cells(self, best: bool) -> tuple[str, ...]:
        test = self._values("test/acc")
        spread = f" +- {100 * stdev(test):.2f}" if len(test) > 1 else ""
        text = f"{100 * mean(test):.2f}{spread} %"
        protocols = [one["protocol"] for one in self.summaries]
        seeds = ", ".join(str(one["seed"]) for one in protocols)
        start = (f"{protocols[0]['label_noise']:g}", self.algo, f"{self.rate:g}", str(protocols[0]["steps"]), seeds)
        return (*start, f"{100 * self.val:.2f} %", f"**{text}**" if best else text)

    def _values(self, name: str) -> list[float]:
        return [float(one[name]) for one in self.summaries]


def summary_of(overrides: list[str]) -> dict[str, Any]:
    """The summary of a run; trains it first where there is none."""
    composed = compose(overrides)
    file = check_config(composed.plain, composed.choices).folder / "summary.json"
    if not file.exists() and metarun(overrides):
        sys.exit(f"failed: metarun {' '.join(overrides)}")
    return dict(json.loads(file.read_text()))


def row(noise: float, algo: str, rate: float, args: argparse.Namespace) -> Row:
    task = ("task=5w5s", f"task.label_noise={noise}", f"train.steps={args.steps}", f"eval.every={args.steps}")
    common = [f"algo={algo}", "track=local", *task, *INNER, *SMALL, f"algo.inner_lr={rate}", *args.overrides]
    return Row(noise, algo, rate, [summary_of([*common, f"seed={seed}"]) for seed in args.seeds])


def numbers(kind: type[int] | type[float]) -> Callable[[str], list[float]]:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="meta-steps of a run")
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--noise", type=numbers(float), default=[0.0, 0.4], help="shares of wrong support labels")
    parser.add_argument("--rates", type=numbers(float), default=[0.15, 0.5], help="inner rates")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further overrides for metarun")
    args = parser.parse_intermixed_args()
    rows = [row(*which, args) for which in product(args.noise, ALGOS, args.rates)]
    lines = [HEADER, tuple("---" for _ in HEADER)]
    for one in rows:
        rivals = [other.val for other in rows if (other.noise, other.algo) == (one.noise, one.algo)]
        lines.append(one.cells(best=one.val == max(rivals)))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    shown = f"task=5w5s task.label_noise=0.4 train.steps={args.steps} {shlex.join((*INNER, *SMALL))} algo.inner_lr=RATE"
    PAGE.write_text(TEXT.format(overrides=shown, table=table))
    print(table)


if __name__ == "__main__":
    main()
