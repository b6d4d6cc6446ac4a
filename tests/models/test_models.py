"""Networks as pure functions: norm layers, bodies and heads, third parties' modules, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import max_pool2d, relu

from metarun.models.conv4 import ConvBlock
from metarun.models.functional import FunctionalNet, build_net, functional_net, module_class, split_head
from metarun.models.layers import BatchNorm, norm_layer
from support.small import CONV, LIBRARY, MLP, MODELS, RESNET, WAYS, conv, dense, distance, episodes, network

SHAPES = {"2-D": (7, 4), "3-D": (7, 4, 5), "4-D": (7, 4, 3, 3)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_batch_norm_is_torchs(shape: tuple[int, ...]) -> None:
    ours = BatchNorm(4, 1e-5, 0.1, affine=True).double()
    theirs = nn.BatchNorm1d(4) if len(shape) < 4 else nn.BatchNorm2d(4)
    theirs.double().load_state_dict({**theirs.state_dict(), "weight": torch.rand(4), "bias": torch.rand(4)})
    ours.load_state_dict(dict(theirs.named_parameters()))
    x = torch.randn(shape, dtype=torch.float64)
    assert distance(ours(x), theirs(x)) < 1e-13
    assert ours.used_stats is not None
    assert distance(theirs.running_mean, 0.1 * ours.used_stats[0]) < 1e-13  # type: ignore[arg-type]  # None without tracking
    theirs.eval()
    theirs.running_mean, theirs.running_var = torch.rand(4).double(), torch.rand(4).double()
    ours.fixed_stats = theirs.running_mean, theirs.running_var
    assert distance(ours(x), theirs(x)) < 1e-13


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_pooling_before_the_norm_is_pooling_after_it(size: tuple[int, int], given: bool) -> None:
    """Values, what was seen, and both derivatives, whatever the signs of the scales."""
    torch.manual_seed(0)
    block = ConvBlock(2, 6, 1, "batch", 1e-5, 0.1).double()
    norm = block.norm
    assert isinstance(norm, BatchNorm)
    assert norm.weight is not None
    assert norm.bias is not None
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert 0 < (norm.weight < 0).sum() < 6
    x = torch.randn(4, 2, *size).double().requires_grad_()
    moments = (torch.randn(6).double(), torch.rand(6).double() + 0.5) if given else None
    wanted = [x, block.conv.weight, norm.weight, norm.bias]

    def measured(run: Any) -> list[Tensor]:
        norm.fixed_stats = moments
        out = run(x)
        assert norm.used_stats is not None
        first = torch.autograd.grad(out.sin().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(torch.stack([d.square().sum() for d in first]).sum(), wanted)
        return [out, *norm.used_stats, *first, *second]

    plain = measured(lambda x: max_pool2d(relu(norm(block.conv(x))), 2))
    for ours, expected in zip(measured(block), plain, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_seen_can_be_given_back(name: str) -> None:
    net, weights = network(name)
    x = episodes(name).support.x[0]
    out, seen = net(weights, x)
    again, used = net(weights, x, seen)
    z, of_body = net.embed(weights, x)
    assert torch.equal(out, again)
    assert seen.keys() == used.keys() == of_body.keys() == net.init_stats().keys()
    assert all(torch.equal(seen[key], used[key]) and torch.equal(seen[key], of_body[key]) for key in seen)
    assert distance(z @ weights["head.weight"].T + weights["head.bias"], out) < 1e-13


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_leaves_nothing_behind(name: str) -> None:
    """A tensor of a vmap level that stays in the module would break every later use of it."""
    net, weights = network(name)
    before = dict(net.module.named_parameters(remove_duplicate=False))
    episode = episodes(name)

    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return net(w, x)[0].square().sum() + net.embed(w, x)[0].sum()

    vmap(grad(loss), in_dims=(None, 0))(weights, episode.support.x)
    after = dict(net.module.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(after[key] is before[key] for key in before)
    assert all(layer.fixed_stats is None and layer.used_stats is None for _, layer in net.norms)


def test_assembling_is_a_function_of_the_seed_and_leaves_the_generators_alone() -> None:
    for name in ("conv4-strided", "l2l-fc"):  # learn2learn draws from numpy for the second
        model = MODELS[name]
        states = torch.get_rng_state(), np.random.get_state(legacy=True)
        (_, a), (_, b), (_, c) = (build_net(model.target, model.fields, model.shape, WAYS, seed) for seed in (5, 5, 6))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert any(not torch.equal(a[key], c[key]) for key in a)
        assert torch.equal(states[0], torch.get_rng_state())
        assert str(states[1]) == str(np.random.get_state(legacy=True))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("l2l")])
def test_a_third_partys_module_computes_the_same_in_two_parts(name: str) -> None:
    model = MODELS[name]
    net, weights = build_net(model.target, model.fields, model.shape, WAYS, seed=1)
    original = module_class(model.target)(**model.fields)
    own = {place.replace("head", "classifier").removeprefix("body."): value for place, value in weights.items()}
    with torch.no_grad():
        for place, parameter in original.named_parameters():
            parameter.copy_(own[place])
    x = episodes(name).support.x[0].float()
    assert torch.allclose(net(weights, x)[0], original(x), atol=1e-5)
    assert torch.allclose(net.module(x), original(x), atol=1e-5)


def test_another_number_of_outputs_gets_a_head_of_its_own() -> None:
    model = MODELS["l2l-cnn"]
    net, weights = build_net(model.target, model.fields, model.shape, WAYS + 2, seed=1)
    assert net.module.head.out_features == WAYS + 2
    assert weights["head.weight"].shape == (WAYS + 2, 3)


def test_a_bare_body_gets_a_head() -> None:
    fields = {"hidden_size": 3, "layers": 4, "channels": 2, "max_pool": True, "max_pool_factor": 1.0}
    _, weights = build_net(LIBRARY + "CNN4Backbone", fields, (2, 16, 16), 5, seed=1)
    assert weights["head.weight"].shape == (5, 3)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


def test_a_shared_weight_is_one_weight() -> None:
    net, weights = functional_net(split_head(Tied(), torch.randn(2, 4), 3))
    assert "body.second.weight" not in weights
    x = torch.randn(5, 4)
    moved = {**weights, "body.first.weight": weights["body.first.weight"] + 1}
    with torch.no_grad():
        net.module.body.first.weight += 1  # type: ignore[union-attr,operator]  # a module of ours, untyped by torch
    assert torch.allclose(net(moved, x)[0], net.module(x), atol=1e-6)
    assert torch.allclose(net.embed(moved, x)[0], net.module.body(x), atol=1e-6)


@pytest.mark.parametrize(
    ("target", "fields", "shape", "embedded"),
    [
        (CONV, {**conv("stride", "mean"), "width": 8, "layers": 4}, (1, 28, 28), 8),
        (CONV, {**conv("pool", "flatten"), "width": 8, "layers": 4}, (1, 28, 28), 8),
        (CONV, {**conv("pool", "flatten"), "width": 8, "layers": 4}, (3, 84, 84), 8 * 25),
        (CONV, {**conv("stride", "flatten"), "width": 8, "layers": 4}, (1, 28, 28), 8 * 4),
        (RESNET, {**MODELS["resnet12"].fields, "widths": (2, 2, 2, 3)}, (1, 28, 28), 3),
        (RESNET, {**MODELS["resnet12"].fields, "widths": (2, 2, 2, 3), "pooling": "flatten"}, (3, 84, 84), 3 * 25),
        (MLP, dense("layer"), (1, 28, 28), 5),
    ],
)
def test_sizes_of_the_papers_images(target: str, fields: dict[str, Any], shape: tuple[int, ...], embedded: int) -> None:
    net, weights = build_net(target, fields, shape, 5, seed=0)
    out, _ = net(weights, torch.randn(3, *shape))
    assert net.module.head.in_features == embedded
    assert out.shape == (3, 5)


def test_group_norms() -> None:
    for channels, groups in ((64, 4), (160, 10), (40, 2), (6, 1)):
        layer = norm_layer("group", channels, 1e-5, 0.1)
        assert isinstance(layer, nn.GroupNorm)
        assert layer.num_groups == groups
    assert isinstance(norm_layer("none", 3, 1e-5, 0.1), nn.Identity)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x + torch.rand_like(x))
        return out


class Softened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.last(x), dim=1)


@pytest.mark.parametrize(
    ("target", "fields", "shape", "reason"),
    [
        (LIBRARY + "ResNet12", {"output_size": 5}, (3, 84, 84), "dropblock_dropout=0.1: drop-out has no place"),
        (LIBRARY + "WRN28", {"output_size": 5, "dropout": 0.2}, (3, 84, 84), "dropout=0.2: .*; set it to 0.0"),
        (
            LIBRARY + "CNN4",
            {"output_size": 5, "hiden": 1},
            (3, 84, 84),
            "unexpected keyword argument 'hiden'; its fields are",
        ),
        (LIBRARY + "CNN4", {"output_size": 5}, (3, 28, 28), "does not take items of shape \\(3, 28, 28\\)"),
        (LIBRARY + "CNN5", {}, (3, 84, 84), "has no torch module CNN5"),
        ("no.such.place", {}, (1,), "no module no; correct the name"),
        ("test_models.Noisy", {}, (3,), "two passes differ"),
        ("test_models.Softened", {}, (3,), "last is not the last step"),
        (CONV, conv("stride", "mean"), (1,), "needs images"),
        (CONV, {**conv("pool", "mean"), "layers": 4}, (1, 8, 8), "layers=4: 8x8 cannot be halved so often"),
        (CONV, {**conv("stride", "mean"), "width": 0}, (1, 8, 8), "width=0: need at least 1"),
        (CONV, conv("shrink", "mean"), (1, 8, 8), "downsample=shrink: choose one of stride, pool"),
        (CONV, conv("stride", "mean", "instance"), (1, 8, 8), "norm=instance: choose"),
        (MLP, {**dense("none"), "sizes": ()}, (1,), "sizes=\\[\\]: need at least one layer"),
        (RESNET, {**MODELS["resnet12"].fields, "widths": (2,) * 5}, (1, 28, 28), "28x28 cannot be halved so often"),
    ],
)
def test_what_does_not_fit_is_refused(target: str, fields: dict[str, Any], shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        build_net(target, fields, shape, 5, seed=0)
    assert "\n" not in str(caught.value)


def test_float32_weights_in_a_net_stay_float32() -> None:
    model = MODELS["conv4-strided"]
    net, weights = build_net(model.target, model.fields, model.shape, WAYS, seed=1)
    assert isinstance(net, FunctionalNet)
    out, seen = net(weights, torch.randn(4, *model.shape))
    assert {out.dtype, *(value.dtype for value in (*seen.values(), *net.init_stats().values()))} == {torch.float32}
