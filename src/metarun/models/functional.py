"""A torch module as pure functions of its weights: body and head apart, normalisation statistics in and out."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.models.layers import BatchNorm
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Params

EXAMPLES = 2  # items a new module is tried on
TOLERANCE = 1e-6  # for two orders of the same float64 arithmetic


class Split(nn.Module):
    """A network whose last linear layer stands apart."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


@dataclass(frozen=True)
class FunctionalNet:
    """types.Net over a Split."""

    module: Split
    momentum: float
    norms: tuple[tuple[str, BatchNorm], ...]
    aliases: tuple[tuple[str, str], ...]  # (another place of a shared parameter, its name)

    def __call__(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        shared = {place: weights[name] for place, name in self.aliases}
        return self._run(self.module, {**weights, **shared}, x, stats)

    def embed(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        shared = {place: weights[name] for place, name in self.aliases}
        places = {**weights, **shared}.items()
        body = {place.removeprefix("body."): value for place, value in places if place.startswith("body.")}
        return self._run(self.module.body, body, x, stats)

    def init_stats(self) -> Params:
        like = self.module.head.weight
        stats: Params = {}
        for name, layer in self.norms:
            stats[f"{name}.mean"] = like.new_zeros(layer.channels)
            stats[f"{name}.var"] = like.new_ones(layer.channels)
        return stats

    def _run(self, module: nn.Module, weights: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
        for name, layer in self.norms:
            layer.given = (stats[f"{name}.mean"], stats[f"{name}.var"]) if stats else None
        try:
            # torch's own tying leaves foreign tensors behind in a layer that is registered twice.
            out = functional_call(module, weights, (x,), tie_weights=False)
            return out, dict(self._seen())
        finally:
            # Left behind, a tensor would outlive the vmap or grad level it belongs to.
            for _, layer in self.norms:
                layer.given = layer.seen = None

    def _seen(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self.norms:
            assert layer.seen is not None, f"{name} took no part in the forward pass"
            yield f"{name}.mean", layer.seen[0]
            yield f"{name}.var", layer.seen[1]


def assemble(
    target: str, fields: Mapping[str, Any], shape: tuple[int, ...], outputs: int, seed: int
) -> tuple[FunctionalNet, Params]:
    """The network of a config: `target` constructed with `fields`, for items of `shape`, with `outputs` outputs.

    A constructor that takes `shape` makes a body, to which a head is added; any other makes a whole network or a body.
    """
    constructor = locate(target)
    signature = inspect.signature(constructor)
    ours = "shape" in signature.parameters
    arguments = {**fields, "shape": shape} if ours else dict(fields)
    _check_arguments(target, signature, arguments)
    with seeded(seed):
        module = constructor(**arguments)
        example = torch.rand(EXAMPLES, *shape)
        split = add_head(module, example, outputs) if ours else split_head(module, example, outputs)
        return build(split)


def build(split: Split) -> tuple[FunctionalNet, Params]:
    norms = tuple((name, layer) for name, layer in split.named_modules() if isinstance(layer, BatchNorm))
    shares = Counter(layer.momentum for _, layer in norms)
    momentum = shares.most_common(1)[0][0] if shares else 0.0
    weights = {name: value.detach().clone() for name, value in split.named_parameters()}
    return FunctionalNet(split, momentum, norms, tuple(_aliases(split))), weights


def add_head(body: nn.Module, example: Tensor, outputs: int) -> Split:
    with torch.no_grad():
        embedding = _forward(body, example)
    if embedding.dim() != 2:
        raise ValueError(f"_target_: the body gives {tuple(embedding.shape)}; let it flatten to [batch, features]")
    return Split(body, new_head(embedding.shape[1], outputs))


def split_head(module: nn.Module, example: Tensor, outputs: int) -> Split:
    """A third party's module with its last linear layer apart and its batch norms ours, proved to compute the same."""
    original = deepcopy(module).double()
    before = _forward(original, example.double())
    linears = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    _replace(module, _our_norm)
    if linears:
        head = module.get_submodule(linears[-1])
        assert isinstance(head, nn.Linear)
        _replace(module, lambda layer: nn.Identity() if layer is head else None)
        split = Split(module, head)
    else:
        split = add_head(module, example, outputs)
    after = _forward(deepcopy(split if linears else module).double(), example.double())
    if after.shape != before.shape or not torch.allclose(after, before, rtol=TOLERANCE, atol=TOLERANCE):
        if not torch.equal(before, _forward(original, example.double())):
            raise ValueError("_target_: two passes differ, so the module is random; set its drop-out fields to 0")
        raise ValueError(f"_target_: {linears[-1]} is not the last step; give a module that ends in a linear layer")
    return split if split.head.out_features == outputs else Split(module, new_head(split.head.in_features, outputs))


def new_head(features: int, outputs: int) -> nn.Linear:
    """Zero, so that no class is preferred before the support is seen; it helps MAML (Kao 2022, arXiv 2106.15367)."""
    head = nn.Linear(features, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def locate(target: str) -> Callable[..., nn.Module]:
    room, _, name = target.rpartition(".")
    try:
        found = getattr(quiet_import(room), name, None)
    except ModuleNotFoundError as missing:
        raise ValueError(f"_target_={target}: no module {missing.name}; correct the name or install it") from None
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(f"_target_={target}: {room} has no torch module {name}; correct the name")
    return found


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's and numpy's generators set to `seed`, and put back after; learn2learn initialises by both."""
    kept = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(kept)


def _check_arguments(target: str, signature: inspect.Signature, arguments: dict[str, Any]) -> None:
    try:
        bound = signature.bind(**arguments)
    except TypeError as wrong:
        names = ", ".join(name for name in signature.parameters if name != "shape")
        raise ValueError(f"_target_={target}: {wrong}; its fields are {names}") from None
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        if "drop" in name and isinstance(value, float) and value > 0:
            raise ValueError(f"{name}={value}: drop-out has no place in pure functions; set it to 0.0")


def _aliases(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Further places of parameters that several layers share; a layer with several names is one place."""
    first: dict[nn.Parameter, str] = {}
    for room, layer in module.named_modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            place = f"{room}.{leaf}"
            name = first.setdefault(parameter, place)
            if name != place:
                yield place, name


def _forward(module: nn.Module, example: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            out: Tensor = module(example)
    except RuntimeError as wrong:
        reason = str(wrong).splitlines()[0]
        items = tuple(example.shape[1:])
        raise ValueError(f"_target_: does not take items of shape {items} ({reason}); mend its sizes") from None
    return out


def _our_norm(layer: nn.Module) -> BatchNorm | None:
    if not isinstance(layer, _BatchNorm):
        return None
    if layer.momentum is None:
        raise ValueError("_target_: a batch norm with momentum=None; give it a number")
    ours = BatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine)
    if layer.affine:
        ours.weight, ours.bias = layer.weight, layer.bias
    return ours


def _replace(module: nn.Module, by: Callable[[nn.Module], nn.Module | None]) -> None:
    """Puts by(layer) in place of each layer for which there is one; a layer registered twice stays one layer."""
    made: dict[nn.Module, nn.Module | None] = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child not in made:
                made[child] = by(child)
            replacement = made[child]
            if replacement is not None:
                parent.register_module(name, replacement)
