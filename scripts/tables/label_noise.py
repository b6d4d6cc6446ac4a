"""MAML and Meta-Weight-Net under wrong support labels, both over the same inner rates: writes docs/label_noise.md.

python scripts/tables/label_noise.py [--steps 500] [--seeds 0,1,2] [--noise 0.0,0.4] [--rates 0.15,0.5] [KEY=VALUE ...]

Finished runs are not made again. In bold, by noise and algorithm, the rate that is best on validation.
"""

from __future__ import annotations

import argparse
import json
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
5-way 5-shot; each support label of training, validation and test tasks is wrong with the probability given, the query
labels are right. Both algorithms adapt the head alone, by ten inner steps, so that it can fit wrong labels if
nothing keeps it from it. Means over seeds with their standard deviation; in bold the inner rate that is best on
validation, for each algorithm and noise.

    metarun algo=NAME {words}

{table}
"""
HEAD = ("label noise", "algo", "inner_lr", "meta-steps", "seeds", "val best", "test")


class Row(NamedTuple):
    noise: float
    algo: str
    rate: float
    summaries: list[dict[str, Any]]

    @property
    def val(self) -> float:
        return mean(self._each("val/best_acc"))

    def cells(self, best: bool) -> tuple[str, ...]:
        test = self._each("test/acc")
        spread = f" +- {100 * stdev(test):.2f}" if len(test) > 1 else ""
        text = f"{100 * mean(test):.2f}{spread} %"
        said = [one["protocol"] for one in self.summaries]
        seeds = ", ".join(str(one["seed"]) for one in said)
        start = (f"{said[0]['label_noise']:g}", self.algo, f"{self.rate:g}", str(said[0]["steps"]), seeds)
        return (*start, f"{100 * self.val:.2f} %", f"**{text}**" if best else text)

    def _each(self, name: str) -> list[float]:
        return [float(one[name]) for one in self.summaries]


def made(words: list[str]) -> dict[str, Any]:
    """The summary of the run, which is made first where there is none."""
    composed = compose(words)
    file = check_config(composed.plain, composed.choices).folder / "summary.json"
    if not file.exists() and metarun(words):
        sys.exit(f"failed: metarun {' '.join(words)}")
    return dict(json.loads(file.read_text()))


def row(noise: float, algo: str, rate: float, asked: argparse.Namespace) -> Row:
    task = ("task=5w5s", f"task.label_noise={noise}", f"train.steps={asked.steps}", f"eval.every={asked.steps}")
    shared = [f"algo={algo}", "track=local", *task, *INNER, *SMALL, f"algo.inner_lr={rate}", *asked.words]
    return Row(noise, algo, rate, [made([*shared, f"seed={seed}"]) for seed in asked.seeds])


def numbers(kind: type[int] | type[float]) -> Callable[[str], list[float]]:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--noise", type=numbers(float), default=[0.0, 0.4])
    parser.add_argument("--rates", type=numbers(float), default=[0.15, 0.5])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="further words for metarun")
    asked = parser.parse_intermixed_args()
    rows = [row(*which, asked) for which in product(asked.noise, ALGOS, asked.rates)]
    lines = [HEAD, tuple("---" for _ in HEAD)]
    for one in rows:
        rivals = [other.val for other in rows if (other.noise, other.algo) == (one.noise, one.algo)]
        lines.append(one.cells(best=one.val == max(rivals)))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = f"task=5w5s task.label_noise=0.4 train.steps={asked.steps} {' '.join((*INNER, *SMALL))} algo.inner_lr=RATE"
    PAGE.write_text(TEXT.format(words=said, table=table))
    print(table)


if __name__ == "__main__":
    main()
