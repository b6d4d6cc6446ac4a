"""Baseline, Baseline++, fine-tuning and scratch against torch's own optimizer, and the batches they are trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algos.baseline import Baseline
from metarun.algos.finetune import FineTune, Scratch
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.cli.main import main
from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.engine.unroll.stored import unroll_graph
from metarun.errors import ConfigError
from metarun.types import BUFFERS, Batch, Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.labelled import IMAGES, opened
from support.runs import TINY, only_run
from support.shapes import shape
from support.small import MODELS, SEED, SHOTS, WAYS, distance, episodes, flat, grown, network

NET = "conv4-strided"
S = WAYS * SHOTS
STEPS, SIZE = 7, 4
SGD: dict[str, Any] = {"momentum": 0.9, "dampening": 0.9, "weight_decay": 0.05}
LOWEST = torch.finfo(torch.float64).min

ALGOS: dict[str, Callable[[Any], Any]] = {
    "baseline": lambda bn: Baseline("linear", 1.0, 1.0, STEPS, SIZE, 0.3, **SGD, bn=bn),
    "baselinepp": lambda bn: Baseline("cosine", 10.0, 2.0, STEPS, SIZE, 0.3, **SGD, bn=bn),
    "finetune": lambda bn: FineTune(STEPS, SIZE, 0.1, **SGD, bn=bn),
    "scratch": lambda bn: Scratch(STEPS, None, 0.1, **SGD, bn=bn),
}
MODES = [(name, bn) for name in ALGOS for bn in ("batch", "support", "running") if (name, bn) != ("scratch", "running")]


def prepared(name: str, bn: str) -> tuple[Any, Any, Meta, Episode]:
    net, weights = network(NET)
    algo = ALGOS[name](bn)
    stack = episodes(NET, tasks=1)
    task = Episode(Batch(*(t[0] for t in stack.support)), Batch(*(t[0] for t in stack.query)), stack.index[0])
    return algo, net, grown(algo.init(net, weights, SEED)), task


def scores(algo: Any, net: Any, meta: Meta, support: Batch, x: Tensor) -> Tensor:
    out: Tensor = algo.predict(net, meta, algo.adapted(net, meta, support, unroll_graph), x)
    return out


def forward(weights: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
    found = MODELS[NET].forward
    assert found is not None
    return found(weights, x, stats)


def embed(weights: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
    """The forward pass with a head that changes nothing."""
    body = {name: value for name, value in weights.items() if not name.startswith("head.")}
    width = len(body["body.blocks.1.norm.bias"])
    eye, zero = torch.eye(width).double(), torch.zeros(width).double()
    return forward({**body, "head.weight": eye, "head.bias": zero}, x, stats)


def cosine(z: Tensor, w: Tensor) -> Tensor:
    return torch.stack([(z * v).sum(1) / ((z**2).sum(1).sqrt() + 1e-8) / ((v**2).sum().sqrt() + 1e-8) for v in w]).T


def batches(size: int) -> list[Tensor]:
    return [minibatch_rows(torch.tensor(0), k, S, size) for k in range(STEPS)]


def descend(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own


def padded(logits_QN: Tensor) -> Tensor:
    return torch.cat([logits_QN, logits_QN.new_full((len(logits_QN), S - WAYS), LOWEST)], dim=1)


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
@pytest.mark.parametrize("name", ["baseline", "baselinepp"])
def test_the_head_is_fitted_as_by_torch(name: str, bn: str) -> None:
    algo, net, meta, task = prepared(name, bn)
    rows = oracle.row(meta.get(BUFFERS, {}), 0)
    z_s, seen = embed(meta["weights"], task.support.x, rows)
    z_q, _ = embed(meta["weights"], task.query.x, seen if bn == "support" else rows)
    answer: Callable[[Tensor], Tensor]
    if name == "baseline":
        head = nn.Linear(z_s.shape[1], WAYS).double()
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        leaves, answer = list(head.parameters()), head
    else:
        means = nn.Parameter(torch.stack([z_s[task.support.y == n].mean(0) for n in range(WAYS)]))
        leaves, answer = [means], lambda z: 2.0 * cosine(z, means)
    optimizer = torch.optim.SGD(leaves, lr=0.3, **SGD)
    for chosen in batches(SIZE):
        optimizer.zero_grad()
        descend(nn.functional.cross_entropy(answer(z_s[chosen]), task.support.y[chosen]))
        optimizer.step()
    expected = padded(answer(z_q).detach())
    found = scores(algo, net, meta, task.support, task.query.x)
    assert torch.equal(found[:, WAYS:], expected[:, WAYS:])
    assert distance(found[:, :WAYS], expected[:, :WAYS]) < 1e-10


@pytest.mark.parametrize(("name", "bn"), [mode for mode in MODES if mode[0] in ("finetune", "scratch")])
def test_all_weights_are_fitted_as_by_torch(name: str, bn: str) -> None:
    algo, net, meta, task = prepared(name, bn)
    w: Params = {key: nn.Parameter(value.clone()) for key, value in meta["weights"].items()}
    w |= {key: nn.Parameter(torch.zeros_like(value)) for key, value in w.items() if key.startswith("head.")}
    rows = oracle.row(meta.get(BUFFERS, {}), 0)
    optimizer = torch.optim.SGD(list(w.values()), lr=0.1, **SGD)
    for chosen in batches(S if name == "scratch" else SIZE):
        optimizer.zero_grad()
        descend(nn.functional.cross_entropy(forward(w, task.support.x[chosen], rows)[0], task.support.y[chosen]))
        optimizer.step()
    stats = forward(w, task.support.x, None)[1] if bn == "support" else rows
    expected = forward(w, task.query.x, stats)[0].detach()
    found = scores(algo, net, meta, task.support, task.query.x)
    assert distance(found[:, :WAYS], expected) < 1e-10
    assert (found[:, WAYS:] == LOWEST).all()


def test_a_baseline_leaves_the_body_as_it_is() -> None:
    for name in ("baseline", "baselinepp"):
        algo, net, meta, task = prepared(name, "running")
        kept = flat(meta).clone()
        adapted = algo.adapted(net, meta, task.support, unroll_graph)
        assert torch.equal(flat(meta), kept)
        assert all(key.startswith("head.") for key in adapted.weights)
        z, _ = net.embed(meta["weights"], task.query.x, {n: v[0] for n, v in meta[BUFFERS].items()})
        head = adapted.weights
        linear = z @ head["head.weight"].T + head.get("head.bias", 0)
        expected = linear if name == "baseline" else 2.0 * cosine(z, head["head.weight"])
        out = algo.predict(net, meta, adapted, task.query.x)
        assert distance(out[:, :WAYS], expected[:, :WAYS]) < 1e-13


def test_fine_tuning_moves_every_weight() -> None:
    algo, net, meta, task = prepared("finetune", "batch")
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    assert all((adapted.weights[n] - w).abs().max() > 1e-6 for n, w in meta["weights"].items() if n.startswith("body."))


@pytest.mark.parametrize(("name", "bn"), MODES)
def test_other_names_for_the_classes_move_the_columns(name: str, bn: str) -> None:
    algo, net, meta, task = prepared(name, bn)
    renamed = torch.tensor([4, 0, 2])  # one label has no image now, as S > N
    found = scores(algo, net, meta, task.support._replace(y=renamed[task.support.y]), task.query.x)
    before = scores(algo, net, meta, task.support, task.query.x)
    assert distance(found[:, renamed], before[:, :WAYS]) < 1e-10
    assert (found[:, [1, 3, 5]] == LOWEST).all()


@pytest.mark.parametrize(("name", "bn"), [mode for mode in MODES if mode[1] != "batch"])
def test_without_transduction_a_query_is_scored_alone(name: str, bn: str) -> None:
    algo, net, meta, task = prepared(name, bn)
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    together = algo.predict(net, meta, adapted, task.query.x)
    alone = torch.cat([algo.predict(net, meta, adapted, x[None]) for x in task.query.x])
    assert distance(alone[:, :WAYS], together[:, :WAYS]) < 1e-12


@pytest.mark.parametrize("bn", ["batch", "running"])
@pytest.mark.parametrize("name", ["baseline", "baselinepp", "finetune"])
def test_training_is_plain_cross_entropy(name: str, bn: str) -> None:
    algo, net, meta, task = prepared(name, bn)
    support, query = (Batch(part.x[None], part.y[None]) for part in (task.support, task.query))
    episode = Episode(support, query, task.index[None])
    found, aux = vmap_engine(None).build(algo, net).meta_grad(meta, episode, 0)
    w = {key: value.clone().requires_grad_() for key, value in meta["weights"].items()}
    x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
    z, seen = embed(w, x, None)
    linear = z @ w["head.weight"].T
    out = 10.0 * cosine(z, w["head.weight"]) if name == "baselinepp" else linear + w["head.bias"]
    value = oracle.objective(out, y)
    expected = dict(zip(w, torch.autograd.grad(value, list(w.values())), strict=True))
    assert distance(found["weights"], expected) < 1e-10
    assert torch.allclose(aux.metrics["loss"], value, rtol=1e-12)
    after = oracle.moved_average(meta.get(BUFFERS, {}), 0, seen, 0.1)
    assert distance(aux.buffers, after) < 1e-12


def test_scratch_has_nothing_to_learn() -> None:
    algo, net, meta, task = prepared("scratch", "batch")
    loss, aux = algo.meta_loss(net, meta, task, torch.tensor(0), unroll_graph)
    assert loss == 0
    assert aux.metrics["loss"] > 0


def test_a_batch_has_the_images_of_its_labels() -> None:
    data = opened("all")
    items, classes = data.items, data.items.splits["train"].classes
    episode = data.batches(shape(5, 2, 3), seed=4)(torch.arange(60))
    x, y = (torch.cat(both, dim=1) for both in zip(episode.support, episode.query, strict=True))
    assert (episode.support.y.shape, episode.query.y.shape, y.dtype) == ((60, 10), (60, 15), torch.int64)
    assert set(y.flatten().tolist()) == set(range(len(classes)))
    byte = ((x * items.std + items.mean) * 255).round().long()
    drawn = torch.zeros(len(classes), IMAGES)
    for picture, label in zip(byte.flatten(0, 1), y.flatten(), strict=True):
        number, turns = classes[label].tolist()
        image = int(picture[0, 2, 3]) - number * IMAGES
        assert torch.equal(picture, torch.rot90(items.rows[items.first_row[number] + image].long(), turns, dims=(1, 2)))
        drawn[label, image] += 1
    assert chi_square(drawn.sum(1)) < 3.5
    assert chi_square(drawn.sum(0)) < 3.5
    assert chi_square(drawn.flatten()) < 3.5


def test_a_batch_is_the_same_in_every_company() -> None:
    make = opened("all").batches(shape(3, 1, 2), seed=4)
    together = make(torch.arange(40))
    for i in (0, 17, 39):
        alone = make(torch.tensor([i]))
        for part in range(2):
            assert all(torch.equal(a[0], b[i]) for a, b in zip(alone[part], together[part], strict=True))
    other = opened("all").batches(shape(3, 1, 2), seed=5)(torch.arange(40))
    assert not torch.equal(other.query.y, together.query.y)


def chi_square(count: Tensor) -> float:
    """Standard deviations above what equal chances would give."""
    expected, free = count.sum() / count.numel(), count.numel() - 1
    return float((((count - expected) ** 2 / expected).sum() - free) / (2 * free) ** 0.5)


def test_a_run_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, f"out={tmp_path}", "algo=scratch", "algo.fit_steps=3", "train.steps=0"]
    assert main(words) == 0
    first = capsys.readouterr().out
    run = only_run(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["best_step"], summary["protocol"]["steps"]) == (0, 0)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert (run / "curves.png").exists()
    assert "step 0/0" not in first
    assert "tasks/s" not in first
    assert main(words) == 0
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["baseline", "finetune"])
def test_a_run_has_one_output_for_each_training_class(name: str, tmp_path: Path) -> None:
    assert (
        main([*TINY, f"out={tmp_path}", f"algo={name}", "algo.fit_steps=2", "task.train.ways=7", "train.steps=4"]) == 0
    )
    best = torch.load(only_run(tmp_path) / "best.pt", weights_only=True)
    assert len(best["meta"]["weights"]["head.weight"]) == 36 * 22  # alphabets and characters of data=glyphs


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["algo=scratch", "train.steps=5"], "train.steps=5: algo=scratch learns nothing before the test; set it to 0"),
        (["algo=baseline", "train.steps=0"], "train.steps=0: algo=baseline has to learn; need at least 1"),
        (["algo=scratch", "algo.bn=running"], "algo.bn=running: nothing is seen before the test"),
        (["algo=baseline", "algo.head=round"], "algo.head=round: no such choice"),
        (["algo=baselinepp", "algo.scale=0"], "algo.scale=0.0: must be above 0"),
        (["algo=finetune", "algo.fit_batch=0"], "algo.fit_batch=0: need at least 1"),
        (["algo=finetune", "algo.fit_steps=0"], "algo.fit_steps=0: need at least 1"),
        (["algo=baseline", "data=sine"], "algo=baseline: is meant for classes"),
    ],
)
def test_mistakes(words: list[str], reason: str) -> None:
    composed = compose(["track=local", *words])
    with pytest.raises(ConfigError, match=f"^{reason}"):
        check_config(composed.plain, composed.choices)
