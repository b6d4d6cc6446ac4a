"""The algorithms a second time: plain loops over torch.autograd and batch norm spelt out; nothing of metarun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

Params = dict[str, Tensor]
Forward = Callable[[Params, Tensor, Params | None], tuple[Tensor, Params]]


@dataclass
class Setting:
    """How a gradient-based algorithm goes about one task."""

    forward: Forward
    steps: int
    first_order: bool
    factor: float  # of the inner mean loss
    moving: Sequence[str]
    bn: str
    momentum: float = 0.1


@dataclass
class Task:
    x_s: Tensor
    y_s: Tensor
    x_q: Tensor
    y_q: Tensor
    batches: list[Tensor] = field(default_factory=list)  # Reptile's rows, one tensor a step


def batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, given: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    if given is None:
        rows = x.transpose(0, 1).reshape(channels, -1)
        mean = rows.sum(1) / rows.shape[1]
        var = ((rows - mean.view(-1, 1)) ** 2).sum(1) / rows.shape[1]
    else:
        mean, var = given
    wide = (1, channels) + (1,) * (x.dim() - 2)
    standard = (x - mean.view(wide)) / torch.sqrt(var.view(wide) + 1e-5)
    return gamma.view(wide) * standard + beta.view(wide), mean, var


def conv4(layers: int, stride: int) -> Forward:
    """Strided with a spatial mean, or max-pooled and flattened."""

    def forward(w: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
        used: Params = {}
        for i in range(layers):
            at = f"body.blocks.{i}."
            x = nnf.conv2d(x, w[at + "conv.weight"], stride=stride, padding=1)
            x = _normed(w, x, at + "norm", stats, used).clamp(min=0)
            x = nnf.max_pool2d(x, 2) if stride == 1 else x
        z = x.reshape(len(x), -1) if stride == 1 else x.mean(3).mean(2)
        return z @ w["head.weight"].T + w["head.bias"], used

    return forward


def mlp(layers: int, normed: bool, activation: Callable[[Tensor], Tensor]) -> Forward:
    def forward(w: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
        used: Params = {}
        x = x.reshape(len(x), -1)
        for i in range(layers):
            at = f"body.layers.{3 * i}."
            x = x @ w[at + "weight"].T + w[at + "bias"]
            x = activation(_normed(w, x, f"body.layers.{3 * i + 1}", stats, used) if normed else x)
        return x @ w["head.weight"].T + w["head.bias"], used

    return forward


def _normed(w: Params, x: Tensor, name: str, stats: Params | None, used: Params) -> Tensor:
    given = (stats[f"{name}.mean"], stats[f"{name}.var"]) if stats else None
    out, used[f"{name}.mean"], used[f"{name}.var"] = batch_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], given)
    return out


def swapped(module: nn.Module, renamed: Callable[[str], str]) -> Forward:
    """A torch module with torch's own batch norm, its parameters replaced; by the batch's statistics only."""
    places = [
        (layer, leaf, f"{room}.{leaf}".removeprefix("."))
        for room, layer in module.named_modules()
        for leaf, _ in layer.named_parameters(recurse=False)
    ]

    def forward(w: Params, x: Tensor, stats: Params | None) -> tuple[Tensor, Params]:
        assert not stats
        for layer, leaf, name in places:
            layer._parameters[leaf] = w[renamed(name)]
        return module(x), {}

    return forward


def objective(out: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        return ((out - y) ** 2).sum() / y.numel()
    logits = out - out.max(dim=1, keepdim=True).values.detach()
    return torch.stack([logits[i].exp().sum().log() - logits[i, label] for i, label in enumerate(y.tolist())]).mean()


def moved_average(old: Params, row: int, seen: Params, momentum: float) -> Params:
    new = {name: rows.clone() for name, rows in old.items()}
    for name in new:
        row_of_it = min(row, len(new[name]) - 1)
        new[name][row_of_it] = (1 - momentum) * old[name][row_of_it] + momentum * seen[name].detach()
    return new


def descended(
    how: Setting, theta: Params, rates: Params, task: Task, buffers: Params, training: bool
) -> tuple[Params, Params]:
    w = dict(theta)
    for k in range(how.steps):
        out, seen = how.forward(w, task.x_s, None if training else row(buffers, k))
        moving = [w[name] for name in how.moving]
        gradients = torch.autograd.grad(how.factor * objective(out, task.y_s), moving, create_graph=True)
        for name, gradient in zip(how.moving, gradients, strict=True):
            w[name] = w[name] - rates[name] * (gradient.detach() if how.first_order else gradient)
        if training:
            buffers = moved_average(buffers, k, seen, how.momentum)
    return w, buffers


def row(buffers: Params, k: int) -> Params | None:
    return {name: rows[min(k, len(rows) - 1)] for name, rows in buffers.items()} or None


def maml_loss(how: Setting, theta: Params, rates: Params, task: Task, buffers: Params) -> tuple[Tensor, Params]:
    w, buffers = descended(how, theta, rates, task, buffers, training=True)
    stats = how.forward(w, task.x_s, None)[1] if how.bn == "support" else None
    out, seen = how.forward(w, task.x_q, stats)
    return objective(out, task.y_q), moved_average(buffers, 10**6, seen, how.momentum)


def maml_scores(how: Setting, theta: Params, rates: Params, task: Task, buffers: Params) -> Tensor:
    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
    w, _ = descended(how, theta, rates, task, buffers, training=False)
    return query_scores(how, w, task, buffers)


def query_scores(how: Setting, w: Params, task: Task, buffers: Params) -> Tensor:
    stats = how.forward(w, task.x_s, None)[1] if how.bn == "support" else row(buffers, 10**6)
    return how.forward(w, task.x_q, stats)[0].detach()


def reptile(
    how: Setting, theta: Params, rate: float, adam: bool, task: Task, buffers: Params, training: bool
) -> tuple[Params, Params]:
    """The adapted weights, and the statistics after. Training uses all there is, test the support."""
    data = (torch.cat([task.x_s, task.x_q]), torch.cat([task.y_s, task.y_q])) if training else (task.x_s, task.y_s)
    w = {name: value.detach().clone() for name, value in theta.items()}
    squares = {name: torch.zeros_like(value) for name, value in w.items()}
    for k, rows in enumerate(task.batches):
        for value in w.values():
            value.requires_grad_()
        out, seen = how.forward(w, data[0][rows], None if training else row(buffers, k))
        gradients = torch.autograd.grad(objective(out, data[1][rows]), list(w.values()))
        for name, g in zip(list(w), gradients, strict=True):
            squares[name] = 0.999 * squares[name] + 0.001 * g * g
            scale = 1 / (torch.sqrt(squares[name] / (1 - 0.999 ** (k + 1))) + 1e-8) if adam else 1.0
            w[name] = (w[name] - rate * g * scale).detach()
        if training:
            buffers = moved_average(buffers, k, seen, how.momentum)
    return w, buffers


def protonet(
    how: Setting, theta: Params, task: Task, buffers: Params, training: bool, cosine: bool
) -> tuple[Tensor, Tensor, Params]:
    """Query logits, loss, statistics after. The head is made the identity, so that outputs are embeddings."""
    z_s, seen_s = how.forward(theta, task.x_s, None if training else row(buffers, 0))
    stats = seen_s if how.bn == "support" else (None if training else row(buffers, 0))
    z_q, seen_q = how.forward(theta, task.x_q, stats)
    ways = sorted(set(task.y_s.tolist()))
    centres = [torch.stack([z for z, y in zip(z_s, task.y_s.tolist(), strict=True) if y == n]).mean(0) for n in ways]
    logits = torch.stack([torch.stack([_closeness(z, centre, cosine) for centre in centres]) for z in z_q])
    for seen in (seen_s, seen_q) if training else ():
        buffers = moved_average(buffers, 0, seen, how.momentum)
    return logits, objective(logits, task.y_q), buffers


def _closeness(a: Tensor, b: Tensor, cosine: bool) -> Tensor:
    if cosine:
        return (a / ((a * a).sum().sqrt() + 1e-8)) @ (b / ((b * b).sum().sqrt() + 1e-8))
    return -((a - b) ** 2).sum()


def meta_gradient(
    loss_of: Callable[[Task], tuple[Tensor, Params]], leaves: list[Tensor], tasks: list[Task]
) -> tuple[list[Tensor], Params]:
    """The mean over tasks, of gradients and of the buffers after."""
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    kept: list[Params] = []
    for task in tasks:
        loss, after = loss_of(task)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, found, strict=True)]
        kept.append(after)
    return [s / len(tasks) for s in sums], mean_of(kept)


def mean_of(kept: list[Params]) -> Params:
    return {name: torch.stack([one[name] for one in kept]).sum(0) / len(kept) for name in kept[0]}
