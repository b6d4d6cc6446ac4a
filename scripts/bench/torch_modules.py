"""The workloads' networks as plain torch modules with torch.nn.BatchNorm2d, as users of other libraries write them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.workloads import Job


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class BodyAndHead(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def torch_module(job: Job) -> BodyAndHead:
    """The job's network with the job's weights; parameters stand in the same order as in metarun's network."""
    values, like = job.config.model.values, job.net.module.head.weight
    body = (
        conv_body(values, job.workload.item[0]) if job.workload.has_images else mlp_body(values, job.workload.item[0])
    )
    module = BodyAndHead(body, nn.Linear(like.shape[1], like.shape[0])).to(like)
    given = job.meta["weights"]
    with torch.no_grad():
        for name, parameter in zip(parameter_names(job), module.parameters(), strict=True):
            if name in given:  # a metric-based algorithm (ProtoNet) learns no head
                assert parameter.shape == given[name].shape, f"{name}: {parameter.shape}"
                parameter.copy_(given[name])
    return module


def parameter_names(job: Job) -> list[str]:
    return [name for name, _ in job.net.module.named_parameters()]


def conv_body(values: Mapping[str, object], channels: int) -> nn.Sequential:
    width, eps, layers = values["width"], values["eps"], values["layers"]
    assert isinstance(width, int)
    assert isinstance(eps, float)
    assert isinstance(layers, int)
    pools, parts = values["downsample"] == "pool", list[nn.Module]()
    for inputs in [channels] + [width] * (layers - 1):
        parts += [
            nn.Conv2d(inputs, width, 3, stride=1 if pools else 2, padding=1, bias=False),
            # Running statistics are not read here; updating them would cost the other libraries time.
            nn.BatchNorm2d(width, eps, track_running_stats=False),
            nn.ReLU(),
            *([nn.MaxPool2d(2)] if pools else []),
        ]
    return nn.Sequential(*parts, nn.Flatten() if values["pooling"] == "flatten" else GlobalMean())


def mlp_body(values: Mapping[str, object], features: int) -> nn.Sequential:
    sizes = values["sizes"]
    assert isinstance(sizes, list | tuple)
    parts: list[nn.Module] = []
    for inputs, outputs in zip([features, *sizes[:-1]], sizes, strict=True):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts)
