"""The loss of a task, by the kind of its targets, and the metrics that are logged in training."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

Metrics = dict[str, Tensor]


def task_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of class labels, mean squared error of real values."""
    if not y.is_floating_point():
        return cross_entropy(outputs, y)
    _require_same_shape(outputs, y)
    return mse_loss(outputs, y)


def item_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """losses_B of each item; task_loss is their mean."""
    if not y.is_floating_point():
        return cross_entropy(outputs, y, reduction="none")
    _require_same_shape(outputs, y)
    return mse_loss(outputs, y, reduction="none").flatten(1).mean(dim=1)


def metrics_of(loss: Tensor, outputs: Tensor, y: Tensor) -> Metrics:
    if y.is_floating_point():
        return {"loss": loss.detach()}
    return {"loss": loss.detach(), "acc": (outputs.detach().argmax(dim=-1) == y).to(outputs.dtype).mean()}


def _require_same_shape(outputs: Tensor, y: Tensor) -> None:
    assert outputs.shape == y.shape, f"outputs {tuple(outputs.shape)} for targets {tuple(y.shape)}"
