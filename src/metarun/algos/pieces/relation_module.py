"""The relation module of Sung et al. 2018: two blocks and two dense layers that score pairs of embeddings.

A block is a convolution (or, for embeddings without a map, a dense layer), batch norm, relu, and a 2x2 max-pool where
the map is not a single pixel. Batch norm is over the pairs that count, spelt out as in layers.BatchNorm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, max_pool2d, relu

from metarun.algos.pieces.dense_lstm import dense, dense_init, generator, uniform
from metarun.types import Meta, Params

BLOCKS = 2
EPS = 1e-5  # torch's


def relation_init(seed: int, like: Tensor, size: int, channels: int | None, hidden: int) -> Meta:
    """For embeddings of `size` numbers: maps of `channels`, or vectors."""
    width, window = (size, ()) if channels is None else (channels, (3, 3))
    side = map_side(size, width)
    blocks: Params = {}
    for i, inputs in enumerate([2 * width, *[width] * (BLOCKS - 1)]):
        bound = 1 / math.sqrt(inputs * math.prod(window))
        blocks[f"{i}.weight"] = uniform(generator(seed + i), like, bound, width, inputs, *window)
        blocks[f"{i}.scale"], blocks[f"{i}.shift"] = like.new_ones(width), like.new_zeros(width)
        side = max(1, side // 2)
    return {"blocks": blocks, "dense": dense_init(seed + BLOCKS, like, width * side**2, hidden, 1)}


def map_side(size: int, channels: int) -> int:
    side = math.isqrt(size // channels)
    if side == 0 or channels * side**2 != size:
        raise ValueError(
            f"channels={channels}: {size} numbers are no square map of them; use null or model.pooling=flatten"
        )
    return side


def relation(meta: Meta, pairs_PF: Tensor, counts_P: Tensor, stats: Params) -> tuple[Tensor, Params]:
    """A score for each pair before the sigmoid, and the statistics that were used: `stats`, or the pairs' own."""
    blocks, x, seen = meta["blocks"], pairs_PF, {}
    convolutional = blocks["0.weight"].dim() == 4
    if convolutional:
        channels = blocks["0.weight"].shape[1]
        side = map_side(pairs_PF.shape[1], channels)
        x = x.reshape(-1, channels, side, side)
    for i in range(BLOCKS):
        weight = blocks[f"{i}.weight"]
        x = conv2d(x, weight, padding=1) if convolutional else linear(x, weight)
        moments = (stats[f"relation.{i}.mean"], stats[f"relation.{i}.var"]) if stats else _moments(x, counts_P)
        seen[f"relation.{i}.mean"], seen[f"relation.{i}.var"] = moments
        x = relu(_normalised(x, *moments, blocks[f"{i}.scale"], blocks[f"{i}.shift"]))
        x = max_pool2d(x, 2) if convolutional and x.shape[-1] > 1 else x
    return dense(meta["dense"], x.flatten(1)).squeeze(1), seen


def relation_stats(meta: Meta) -> Params:
    """Rows as in statistics.fresh_buffers: before anything was seen."""
    rows: Params = {}
    for i in range(BLOCKS):
        scale = meta["blocks"][f"{i}.scale"].unsqueeze(0)
        rows[f"relation.{i}.mean"], rows[f"relation.{i}.var"] = torch.zeros_like(scale), torch.ones_like(scale)
    return rows


def _moments(x: Tensor, counts_P: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over the pairs that count."""
    x_PCM = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    share_P11 = (counts_P / counts_P.sum()).reshape(-1, 1, 1)
    mean_C = (share_P11 * x_PCM).sum(dim=0).mean(dim=1)
    centred = x_PCM - mean_C.unsqueeze(1)
    return mean_C, (share_P11 * centred.square()).sum(dim=0).mean(dim=1)


def _normalised(x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    broadcast = (-1,) + (1,) * (x.dim() - 2)
    spread = scale * torch.rsqrt(var + EPS)
    return (x - mean.reshape(broadcast)) * spread.reshape(broadcast) + shift.reshape(broadcast)
