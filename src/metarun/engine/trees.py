"""Trees of tensors: nested tuples, lists and dicts, as torch.utils._pytree walks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

TensorTree = TypeVar("TensorTree")
Args = TypeVarTuple("Args")


def map_tensors(function: Callable[..., Tensor], tree: TensorTree, *others: TensorTree) -> TensorTree:
    """`function` of the tensors that stand at the same place in all trees. All leaves are tensors."""
    mapped: TensorTree = tree_map(function, tree, *others)
    return mapped


def detached_tree(tree: TensorTree) -> TensorTree:
    """Leaves that are no tensors stay as they are."""
    detached: TensorTree = tree_map_only(Tensor, Tensor.detach, tree)
    return detached


def split_tensors(tree: TensorTree) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], TensorTree]]:
    """The tensors of a tree, and a function that builds the same tree with other tensors in their places."""
    leaves, spec = tree_flatten(tree)
    others = [(isinstance(leaf, Tensor), None if isinstance(leaf, Tensor) else leaf) for leaf in leaves]

    def build(tensors: Sequence[Tensor]) -> TensorTree:
        following = iter(tensors)
        built: TensorTree = tree_unflatten([next(following) if here else leaf for here, leaf in others], spec)
        return built

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], build
