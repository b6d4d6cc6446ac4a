"""Meta-Curvature and Meta-KFO: MAML before they have learned, dense matrices after, and those of learn2learn."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.kfo import KFO
from metarun.algos.metacurvature import MetaCurvature
from metarun.engine.learn2learn import Learn2Learn
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import BUFFERS, Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.small import ALGOS, MODELS, SEED, descent, distance, episodes, flat, grown, maml, metasgd, network

Fields = dict[str, Any]
RATE = 0.3
KFO_PLAIN: Fields = {"layers": 1, "activation": "none", "bias": False, "psd": False, "adapt_transform": False}
VARIANTS: dict[str, Fields | None] = {  # None: Meta-Curvature
    "metacurvature": None,
    "kfo": KFO_PLAIN,
    "kfo-psd-bias": {**KFO_PLAIN, "psd": True, "bias": True},
    "kfo-deep": {**KFO_PLAIN, "layers": 3, "psd": True},
    "kfo-relu": {**KFO_PLAIN, "layers": 2, "activation": "relu", "bias": True},
    "kfo-adapting": {**KFO_PLAIN, "psd": True, "adapt_transform": True},
    "kfo-all": {"layers": 2, "activation": "relu", "bias": True, "psd": True, "adapt_transform": True},
}
NOT_OF_FIRST_ORDER = [("kfo-adapting", "first"), ("kfo-all", "first")]  # in learn2learn
START_AS_MAML = [name for name, fields in VARIANTS.items() if not fields or fields["activation"] == "none"]


def algorithm(which: str, bn: str = "batch", **changes: Any) -> Any:
    own, shared = VARIANTS[which], descent(bn, **{"inner_lr": RATE, **changes})
    return MetaCurvature(**shared) if own is None else KFO(**shared, **own)


def learned(meta: Meta) -> Meta:
    """Away from the identities, and from every symmetry."""
    noise = torch.Generator().manual_seed(8)

    def moved(value: Tensor) -> Tensor:
        return value + 0.3 * torch.randn(value.shape, generator=noise).double()

    return {e: group if e in ("weights", BUFFERS) else tree_map(moved, group) for e, group in meta.items()}


def dense(which: str, own: Params, name: str, g: Tensor) -> Tensor:
    """The whole transformation of a gradient as matrices on its flattened numbers."""
    fields, x = VARIANTS[which], g.flatten()
    if fields is None:
        if g.dim() == 1:
            return torch.diag(own[f"{name}.out"]) @ x
        modes = [own[f"{name}.{mode}"] for mode in ("out", "in", "filter") if f"{name}.{mode}" in own]
        return reduce(torch.kron, modes) @ x
    slices = len(g) if g.dim() == 4 else 1
    for i in range(fields["layers"]):
        left, right = own[f"{name}.{i}.left"], own[f"{name}.{i}.right"]
        if fields["psd"]:
            left, right = left.T @ left, right.T @ right
        x = torch.kron(torch.eye(slices).double(), torch.kron(left, right.T.contiguous())) @ x
        if fields["bias"]:
            x = x + own[f"{name}.{i}.bias"].flatten().repeat(slices)
        if fields["activation"] == "relu" and i < fields["layers"] - 1:
            x = torch.where(x > 0, x, 0)
    return x


class ByHand:
    """MAML's inner loop on one task, with torch.autograd and dense matrices."""

    def __init__(self, name: str, which: str, algo: Any, meta: Meta) -> None:
        self.name, self.which, self.algo = name, which, algo
        self.leaves: Meta = tree_map(lambda value: value.clone().requires_grad_(), meta)
        (self.entry,) = meta.keys() - {"weights"}

    def loss(self, w: Params, x: Tensor, y: Tensor) -> Tensor:
        forward = MODELS[self.name].forward
        assert forward is not None
        return oracle.objective(forward(w, x, None)[0], y)

    def paths(self, x: Tensor, y: Tensor, steps: int) -> list[Params]:
        """The weights before the first step, after it, and so on."""
        w, own, path = self.leaves["weights"], self.leaves[self.entry], [self.leaves["weights"]]
        moving = [name for name in w if self.algo.adapt == ("*",) or name.startswith("head.")]
        for k in range(steps):
            loss = self.loss(w, x, y)
            if k and getattr(self.algo, "adapt_transform", False):
                slopes = self.slopes(loss, list(own.values()))
                own = {n: v - RATE * s for (n, v), s in zip(own.items(), slopes, strict=True)}
            gradients = dict(zip(moving, self.slopes(loss, [w[n] for n in moving]), strict=True))
            turned = {n: dense(self.which, own, n, g).reshape(g.shape) for n, g in gradients.items()}
            w = {**w, **{n: w[n] - RATE * turned[n] for n in moving}}
            path.append(w)
        return path

    def slopes(self, loss: Tensor, of: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss, of, create_graph=True, materialize_grads=True)
        return [s.detach() if self.algo.derivatives == "first" else s for s in found]

    def gradient(self, episode: Episode, shares: list[float]) -> Meta:
        """Of the mean over tasks of the outer losses after every step, weighted by `shares`."""
        values = []
        for x_s, y_s, x_q, y_q in zip(*episode.support, *episode.query, strict=True):
            outer = (x_q, y_q) if self.algo.outer_loss_on == "query" else (x_s, y_s)
            path = self.paths(x_s, y_s, self.algo.steps)
            values += [share * self.loss(w, *outer) for share, w in zip(shares, path[1:], strict=True) if share]
        named = [(entry, n) for entry, group in self.leaves.items() for n in group]
        total = torch.stack(values).sum() / len(episode.index)
        found = torch.autograd.grad(total, [self.leaves[e][n] for e, n in named], materialize_grads=True)
        out: Meta = {entry: {} for entry in self.leaves}
        for (entry, n), value in zip(named, found, strict=True):
            out[entry][n] = value
        return out

    def scores(self, episode: Episode) -> Tensor:
        forward = MODELS[self.name].forward
        assert forward is not None
        tasks = zip(*episode.support, episode.query.x, strict=True)
        adapted = [(self.paths(x, y, self.algo.test_steps)[-1], x_q) for x, y, x_q in tasks]
        return torch.stack([forward(w, x_q, None)[0].detach() for w, x_q in adapted])


def test_each_mode_has_its_factor() -> None:
    net, weights = network("conv4-strided")
    M = algorithm("metacurvature").init(net, weights, SEED)["curvature"]
    conv = "body.blocks.1.conv.weight"
    shapes = {name: tuple(value.shape) for name, value in M.items()}
    assert {n: s for n, s in shapes.items() if n.startswith(conv)} == {
        f"{conv}.out": (4, 4),
        f"{conv}.in": (4, 4),
        f"{conv}.filter": (9, 9),
    }
    assert (shapes["head.weight.out"], shapes["head.weight.in"], shapes["head.bias.out"]) == ((3, 3), (4, 4), (3,))
    assert "head.bias.in" not in shapes
    xi = algorithm("kfo-psd-bias").init(net, weights, SEED)["network"]
    first = "body.blocks.0.conv.weight.0"
    found = [tuple(xi[f"{first}.{factor}"].shape) for factor in ("left", "right", "bias")]
    assert found == [(2, 2), (9, 9), (2, 9)]
    assert [tuple(xi[f"head.bias.0.{f}"].shape) for f in ("left", "right", "bias")] == [(3, 3), (1, 1), (3, 1)]


SETTINGS: list[tuple[str, Fields]] = [
    ("batch", {"loss_reduction": "sum_over_ways"}),
    ("batch", {"derivatives": "first"}),
    ("batch", {"adapt": ("head.*",)}),
    ("batch", {"multi_step_loss_until": 10}),
    ("batch", {"outer_loss_on": "support"}),
    ("batch", {"bn_weights": "per_step", "test_steps": 2}),
    ("support", {}),
    ("running", {"derivatives": "first"}),
    ("per_step", {}),
]


@pytest.mark.parametrize(
    ("which", "bn", "changes"),
    [("metacurvature", *setting) for setting in SETTINGS]
    + [("kfo-psd-bias", *setting) for setting in SETTINGS[::2]]
    + [
        (w, "batch", {"derivatives": derivatives})
        for w in START_AS_MAML
        if w != "metacurvature"
        for derivatives in ("first", "second")
    ],
)
def test_before_it_has_learned_it_is_maml(which: str, bn: str, changes: Fields) -> None:
    """One step where the network adapts as well: its first step is the identity's."""
    adapting = which == "kfo-adapting"
    fields = {**changes, **({"steps": 1, "test_steps": 1} if adapting else {})}
    net, weights = network("conv4-strided")
    one, other = maml(bn, **{"inner_lr": RATE, **fields}), algorithm(which, bn, **fields)
    a, b = one.init(net, weights, SEED), other.init(net, weights, SEED)
    episode = episodes("conv4-strided")
    (expected, aux), (found, found_aux) = (
        vmap_engine(None).build(algo, net).meta_grad(grown(meta), episode, 4) for algo, meta in ((one, a), (other, b))
    )
    (entry,) = found.keys() - expected.keys()
    assert distance({e: g for e, g in found.items() if e != entry}, expected) < 1e-13
    assert distance(found_aux.buffers, aux.buffers) < 1e-13
    scores = [vmap_engine(None).build(algo, net).scores(grown(meta), episode) for algo, meta in ((one, a), (other, b))]
    assert distance(scores[1], scores[0]) < 1e-13


@pytest.mark.parametrize("which", ["metacurvature", "kfo-deep"])
def test_the_order_changes_on_the_way(which: str) -> None:
    net, weights = network("mlp")
    late, first, second = (
        algorithm(which, second_order_from=5),
        algorithm(which, derivatives="first"),
        algorithm(which),
    )
    meta, episode = learned(late.init(net, weights, SEED)), episodes("mlp")
    for step, expected in ((4, first), (5, second)):
        found, target = (
            vmap_engine(None).build(algo, net).meta_grad(meta, episode, step)[0] for algo in (late, expected)
        )
        assert distance(found, target) < 1e-13


@pytest.mark.parametrize("which", VARIANTS)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("conv4-strided", {}),
        ("conv4-strided", {"derivatives": "first", "steps": 3}),
        ("conv4-strided", {"adapt": ("head.*",), "steps": 3}),
        ("mlp-sine", {"outer_loss_on": "support", "steps": 3}),
        ("mlp", {"multi_step_loss_until": 10}),
    ],
)
def test_after_it_has_learned_it_is_a_dense_matrix(which: str, name: str, changes: Fields) -> None:
    net, weights = network(name)
    algo = algorithm(which, **changes)
    meta, episode = learned(algo.init(net, weights, SEED)), episodes(name)
    expected = ByHand(name, which, algo, meta)
    # At meta-step 4 of 10 the loss after the first of two steps counts for 1/2 * (1 - 4/10).
    shares = [0.3, 0.7] if algo.multi_step_loss_until else [0.0] * (algo.steps - 1) + [1.0]
    gradient, scores = expected.gradient(episode, shares), expected.scores(episode)
    engine = vmap_engine(None).build(algo, net)
    found, _ = engine.meta_grad(meta, episode, 4)
    assert distance(found[expected.entry], gradient[expected.entry]) < 1e-12
    assert distance(found, gradient) < 1e-12
    assert distance(engine.scores(meta, episode), scores) < 1e-12


def test_a_relu_starts_with_the_positive_part() -> None:
    net, weights = network("mlp")
    algo, support = algorithm("kfo-relu", test_steps=1), tree_map(lambda stack: stack[0], episodes("mlp").support)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    gradients = torch.autograd.grad(oracle.objective(net(leaves, support.x)[0], support.y), list(leaves.values()))
    expected = {n: w - RATE * g.clamp(min=0) for (n, w), g in zip(weights.items(), gradients, strict=True)}
    found = algo.adapted(net, algo.init(net, weights, SEED), support, unroll_graph).weights
    assert distance(found, expected) < 1e-13


@pytest.mark.parametrize("name", ["conv4-strided", "mlp", "mlp-sine"])
@pytest.mark.parametrize(
    ("which", "derivatives"),
    [(w, o) for w in VARIANTS for o in ("first", "second") if (w, o) not in NOT_OF_FIRST_ORDER],
)
def test_learn2learn_agrees(name: str, which: str, derivatives: str) -> None:
    """Three steps, so that a network that adapts does so from a network that has adapted."""
    for patterns in (("*",),) if name != "mlp-sine" else (("*",), ("head.*",), ("body.*",)):
        compare(algorithm(which, steps=3, test_steps=2, derivatives=derivatives, adapt=patterns), name)


@pytest.mark.parametrize("which", ["metacurvature", "kfo-adapting"])
def test_learn2learn_agrees_on_layers_registered_twice(which: str) -> None:
    compare(algorithm(which), "l2l-cnn")


@pytest.mark.parametrize("name", ["conv4-strided", "mlp-sine"])
@pytest.mark.parametrize("derivatives", ["first", "second"])
def test_learn2learn_adapts_the_body_alone(name: str, derivatives: str) -> None:
    for algo in (
        maml("batch", derivatives=derivatives, adapt=("body.*",)),
        metasgd("batch", derivatives=derivatives, adapt=("body.*",)),
    ):
        compare(algo, name)


def compare(algo: Any, name: str) -> None:
    net, weights = network(name)
    meta, episode = learned(algo.init(net, weights, SEED)), episodes(name, tasks=2)
    ours, theirs = vmap_engine(None).build(algo, net), Learn2Learn().build(algo, net)
    (found, aux), (expected, expected_aux) = (engine.meta_grad(meta, episode, 0) for engine in (ours, theirs))
    assert found.keys() == expected.keys()
    for entry in found:
        assert flat(expected[entry]).norm() > 1e-3
        assert distance(found[entry], expected[entry]) < 1e-10
    assert distance(aux.metrics, expected_aux.metrics) < 1e-10
    assert distance(ours.scores(meta, episode), theirs.scores(meta, episode)) < 1e-10


@pytest.mark.parametrize(
    ("algo", "reason"),
    [
        (
            maml("batch", multi_step_loss_until=9),
            "has multi_step_loss_until=0 alone, not multi_step_loss_until=9; use engine=vmap",
        ),
        (maml("batch", second_order_from=9), "has second_order_from=0 alone, not second_order_from=9; use engine=vmap"),
        (
            maml("batch", outer_loss_on="support"),
            "has outer_loss_on=query alone, not outer_loss_on=support; use engine=vmap",
        ),
        (metasgd("batch", bn_weights="per_step", test_steps=2), "bn_weights=shared alone, not bn_weights=per_step"),
        (maml("batch", "per_layer_per_step"), "has rates=fixed alone, not rates=per_layer_per_step; use engine=vmap"),
        (algorithm("metacurvature", multi_step_loss_until=9), "has multi_step_loss_until=0 alone"),
        (algorithm("kfo", "support"), "by the batch, not by bn=support; use engine=vmap"),
        (algorithm("kfo", adapt=("*weight",)), "all weights or the head or the body"),
        (
            algorithm("kfo-all", derivatives="first"),
            "has no derivatives=first with adapt_transform=true; use engine=vmap",
        ),
        (ALGOS["reptile"]("batch"), "has no wrapper for Reptile; use engine=vmap"),
    ],
)
def test_what_learn2learn_cannot_do_is_refused(algo: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^learn2learn .*{reason}"):
        Learn2Learn().build(algo, network("mlp")[0])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layers": 0}, "layers=0: need at least 1"),
        ({"activation": "tanh"}, "activation=tanh: choose one of none, relu"),
        ({"adapt_transform": True, "second_order_from": 3}, "second_order_from=3: with adapt_transform=true"),
    ],
)
def test_bad_fields(fields: Fields, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        KFO(**{**descent("batch"), **KFO_PLAIN, **fields})
