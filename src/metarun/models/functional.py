"""Torch modules as pure functions of their weights, with body and head apart; statistics of norms are arguments."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.models.layers import BatchNorm
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Params

TRIAL_ITEMS = 2  # items that a new module is tried on
TRIAL_TOLERANCE = 1e-6  # between two orders of the same float64 arithmetic


class BodyAndHead(nn.Module):
    """A network whose last linear layer is a module of its own."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


@dataclass(frozen=True)
class FunctionalNet:
    """types.Net over a BodyAndHead."""

    module: BodyAndHead
    momentum: float
    norms: tuple[tuple[str, BatchNorm], ...]
    aliases: tuple[tuple[str, str], ...]  # (another place of a shared parameter, its name)

    def __call__(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        return self._run(self.module, self._at_all_places(weights), x, stats)

    def embed(self, weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
        places = self._at_all_places(weights).items()
        body = {place.removeprefix("body."): value for place, value in places if place.startswith("body.")}
        return self._run(self.module.body, body, x, stats)

    def init_stats(self) -> Params:
        like = self.module.head.weight
        stats: Params = {}
        for name, layer in self.norms:
            stats[f"{name}.mean"] = like.new_zeros(layer.channels)
            stats[f"{name}.var"] = like.new_ones(layer.channels)
        return stats

    def _at_all_places(self, weights: Params) -> Params:
        return {**weights, **{place: weights[name] for place, name in self.aliases}}

    def _run(self, module: nn.Module, weights: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
        for name, layer in self.norms:
            layer.fixed_stats = (stats[f"{name}.mean"], stats[f"{name}.var"]) if stats else None
        try:
            # With tie_weights=True torch leaves tensors of this call behind in a layer that is registered twice.
            out = functional_call(module, weights, (x,), tie_weights=False)
            return out, dict(self._used_stats())
        finally:
            # A tensor that stayed in a layer would outlive the vmap or grad level it belongs to.
            for _, layer in self.norms:
                layer.fixed_stats = layer.used_stats = None

    def _used_stats(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self.norms:
            assert layer.used_stats is not None, f"{name} took no part in the forward pass"
            yield f"{name}.mean", layer.used_stats[0]
            yield f"{name}.var", layer.used_stats[1]


def build_net(
    target: str, fields: Mapping[str, object], shape: tuple[int, ...], outputs: int, seed: int
) -> tuple[FunctionalNet, Params]:
    """A configured network and its initial weights: `target` constructed with `fields`, with `outputs` outputs.

    A constructor with an argument `shape` (that of one item) makes a body, to which a head is added. Any other makes a
    whole network, whose last linear layer becomes the head, or a body.
    """
    constructor = module_class(target)
    signature = inspect.signature(constructor)
    ours = "shape" in signature.parameters
    arguments = {**fields, "shape": shape} if ours else dict(fields)
    _check_constructor(target, signature, arguments)
    with global_seeds(seed):
        module = constructor(**arguments)
        example = torch.rand(TRIAL_ITEMS, *shape)
        split = add_head(module, example, outputs) if ours else split_head(module, example, outputs)
        return functional_net(split)


def functional_net(split: BodyAndHead) -> tuple[FunctionalNet, Params]:
    norms = tuple((name, layer) for name, layer in split.named_modules() if isinstance(layer, BatchNorm))
    momenta = Counter(layer.momentum for _, layer in norms)
    momentum = momenta.most_common(1)[0][0] if momenta else 0.0
    weights = {name: value.detach().clone() for name, value in split.named_parameters()}
    return FunctionalNet(split, momentum, norms, tuple(_places_of_shared_parameters(split))), weights


def add_head(body: nn.Module, example: Tensor, outputs: int) -> BodyAndHead:
    with torch.no_grad():
        embedding = _try_forward(body, example)
    if embedding.dim() != 2:
        raise ValueError(f"_target_: the body gives {tuple(embedding.shape)}; let it flatten to [batch, features]")
    return BodyAndHead(body, zero_head(embedding.shape[1], outputs))


def split_head(module: nn.Module, example: Tensor, outputs: int) -> BodyAndHead:
    """Takes the last linear layer of a third party's module as head, replaces its batch norms by ours, and checks that
    the outputs stay the same.
    """
    original = deepcopy(module).double()
    before = _try_forward(original, example.double())
    linears = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    _replace_layers(module, _own_batch_norm)
    if linears:
        head = module.get_submodule(linears[-1])
        assert isinstance(head, nn.Linear)
        _replace_layers(module, lambda layer: nn.Identity() if layer is head else None)
        split = BodyAndHead(module, head)
    else:
        split = add_head(module, example, outputs)
    after = _try_forward(deepcopy(split if linears else module).double(), example.double())
    if after.shape != before.shape or not torch.allclose(after, before, rtol=TRIAL_TOLERANCE, atol=TRIAL_TOLERANCE):
        if not torch.equal(before, _try_forward(original, example.double())):
            raise ValueError("_target_: two passes differ, so the module is random; set its drop-out fields to 0")
        raise ValueError(f"_target_: {linears[-1]} is not the last step; give a module that ends in a linear layer")
    return (
        split if split.head.out_features == outputs else BodyAndHead(module, zero_head(split.head.in_features, outputs))
    )


def zero_head(features: int, outputs: int) -> nn.Linear:
    """A head of zeros prefers no class before adaptation, which helps MAML (Kao 2022, arXiv 2106.15367)."""
    head = nn.Linear(features, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def module_class(target: str) -> Callable[..., nn.Module]:
    """The torch module class that `_target_` names."""
    room, _, name = target.rpartition(".")
    try:
        found = vars(quiet_import(room)).get(name)
    except ModuleNotFoundError as missing:
        raise ValueError(f"_target_={target}: no module {missing.name}; correct the name or install it") from None
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(f"_target_={target}: {room} has no torch module {name}; correct the name")
    return found


@contextlib.contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Context manager: seeds the global generators of torch and numpy (learn2learn uses both), and restores them."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


def _check_constructor(target: str, signature: inspect.Signature, arguments: dict[str, object]) -> None:
    try:
        bound = signature.bind(**arguments)
    except TypeError as wrong:
        names = ", ".join(name for name in signature.parameters if name != "shape")
        raise ValueError(f"_target_={target}: {wrong}; its fields are {names}") from None
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        if "drop" in name and isinstance(value, float) and value > 0:
            raise ValueError(f"{name}={value}: drop-out has no place in pure functions; set it to 0.0")


def _places_of_shared_parameters(module: nn.Module) -> Iterator[tuple[str, str]]:
    """(place, name) for each further place of a parameter that several layers share. Its name is its first place."""
    first: dict[nn.Parameter, str] = {}
    for path, layer in module.named_modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            place = f"{path}.{leaf}"
            name = first.setdefault(parameter, place)
            if name != place:
                yield place, name


def _try_forward(module: nn.Module, example: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            out: Tensor = module(example)
    except RuntimeError as wrong:
        reason = str(wrong).splitlines()[0]
        items = tuple(example.shape[1:])
        raise ValueError(f"_target_: does not take items of shape {items} ({reason}); mend its sizes") from None
    return out


def _own_batch_norm(layer: nn.Module) -> BatchNorm | None:
    if not isinstance(layer, _BatchNorm):
        return None
    if layer.momentum is None:
        raise ValueError("_target_: a batch norm with momentum=None; give it a number")
    ours = BatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine)
    if layer.affine:
        ours.weight, ours.bias = layer.weight, layer.bias
    return ours


def _replace_layers(module: nn.Module, by: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replaces each layer by by(layer) unless that is None. A layer that is registered twice stays one layer."""
    made: dict[nn.Module, nn.Module | None] = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child not in made:
                made[child] = by(child)
            replacement = made[child]
            if replacement is not None:
                parent.register_module(name, replacement)
