"""Our kernels against torch's own in float64: values, first and second derivatives, under vmap and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn.functional import conv2d, max_pool2d
from torch.utils._pytree import tree_leaves

from metarun.engine.kernels.substitute import SubstituteKernels


def second_order(function: Callable[..., Tensor], *args: Tensor) -> list[Tensor]:
    """A function's value, first and second derivatives by all arguments, for a stack of tasks by vmap and for one."""
    places = tuple(range(len(args)))

    def value(*args: Tensor) -> Tensor:
        total: Tensor = function(*args).sin().sum()
        return total

    def pulled(*args: Tensor) -> Tensor:
        return torch.stack([(d.square() * d).sum() for d in grad(value, argnums=places)(*args)]).sum()

    def all_of(*args: Tensor) -> Any:
        return value(*args), jacrev(value, argnums=places)(*args), grad(pulled, argnums=places)(*args)

    def alone(*args: Tensor) -> Any:
        return all_of(*(arg[0] for arg in args))

    found = [*tree_leaves(vmap(all_of)(*args)), *tree_leaves(alone(*args))]
    assert all(isinstance(value, Tensor) for value in found)
    return found


def assert_like_torch(function: Callable[..., Tensor], *args: Tensor) -> None:
    expected = second_order(function, *args)
    with SubstituteKernels():
        found = second_order(function, *args)
    for a, e in zip(found, expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-11, atol=1e-11)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


@pytest.mark.parametrize(
    "sizes", [{}, {"stride": 2, "padding": 1}, {"padding": (1, 0), "dilation": (1, 2), "stride": (1, 2)}, {"groups": 2}]
)
@pytest.mark.parametrize("channels", [4, 2])  # with groups=2: two channels in a group, or one
@pytest.mark.parametrize("images", [1, 3])  # few output pixels (a matrix product), and more
def test_conv2d_is_torchs(sizes: dict[str, Any], channels: int, images: int) -> None:
    inner = channels // 2
    x, w, b = noise(2, images, channels, 7, 6), noise(2, 4, inner, 3, 3), noise(2, 4)
    if "groups" not in sizes:
        x = x[:, :, :inner]  # two channels, or one
    assert_like_torch(lambda x, w, b: conv2d(x, w, b, **sizes), x, w, b)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_max_pool2d_is_torchs(size: tuple[int, int]) -> None:
    assert_like_torch(lambda x: max_pool2d(x, 2), noise(2, 3, 2, *size))


def test_max_pool2d_takes_the_first_of_equal_values() -> None:
    """As torch does: real images have patches of one colour."""
    x = torch.tensor([[1.0, 1, 0, 2], [1, 1, 2, 2], [0, 3, 5, 4], [3, 3, 5, 5]], dtype=torch.float64)
    assert_like_torch(lambda x, w: max_pool2d(x * w, 2), x.expand(2, 1, 1, 4, 4), noise(2, 1, 1, 4, 4).sign())


@pytest.mark.parametrize("options", [{"stride": 1}, {"padding": 1}, {"ceil_mode": True}])
def test_other_pooling_is_left_to_torch(options: dict[str, Any]) -> None:
    assert_like_torch(lambda x: max_pool2d(x, 2, **options), noise(2, 3, 2, 5, 5))


@pytest.mark.parametrize("dims", [[0], [0, 2, 3], [1, 2]])
def test_var_mean_is_torchs(dims: list[int]) -> None:
    assert_like_torch(
        lambda x: torch.cat([v.flatten() for v in torch.var_mean(x, dims, correction=0)]), noise(2, 3, 2, 4, 5)
    )
    assert_like_torch(lambda x: torch.cat([v.flatten() for v in torch.var_mean(x, dims)]), noise(2, 3, 2, 4, 5))
