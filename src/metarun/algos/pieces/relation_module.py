"""The relation module of Sung et al. 2018: two blocks and two dense layers that score pairs of embeddings.

A block is a convolution (for embeddings that are vectors: a dense layer), batch norm, relu, and a 2x2 max-pool where
the map has more than one pixel. Batch norm is spelt out as in models/layers.py, over the pairs of present classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, max_pool2d, relu

from metarun.algos.pieces.dense_lstm import dense, dense_init, seeded_generator, uniform_like
from metarun.types import Meta, Params

NUM_BLOCKS = 2
NORM_EPS = 1e-5  # torch's


def relation_init(seed: int, like: Tensor, size: int, channels: int | None, hidden: int) -> Meta:
    """Weights for embeddings of `size` numbers, which are maps of `channels` channels, or vectors (None)."""
    width, window = (size, ()) if channels is None else (channels, (3, 3))
    side = map_side(size, width)
    blocks: Params = {}
    for i, inputs in enumerate([2 * width, *[width] * (NUM_BLOCKS - 1)]):
        bound = 1 / math.sqrt(inputs * math.prod(window))
        blocks[f"{i}.weight"] = uniform_like(seeded_generator(seed + i), like, bound, width, inputs, *window)
        blocks[f"{i}.scale"], blocks[f"{i}.shift"] = like.new_ones(width), like.new_zeros(width)
        side = max(1, side // 2)
    return {"blocks": blocks, "dense": dense_init(seed + NUM_BLOCKS, like, width * side**2, hidden, 1)}


def map_side(size: int, channels: int) -> int:
    side = math.isqrt(size // channels)
    if side == 0 or channels * side**2 != size:
        raise ValueError(
            f"channels={channels}: {size} numbers are no square map of them; use null or model.pooling=flatten"
        )
    return side


def relation_scores(meta: Meta, pairs_PF: Tensor, counts_P: Tensor, stats: Params) -> tuple[Tensor, Params]:
    """g_P, the score of each pair before the sigmoid, and the statistics that were used: `stats`, or the pairs' own.

    counts_P weights each pair in the statistics: 1, or 0 where its class is absent.
    """
    blocks, x, used = meta["blocks"], pairs_PF, {}
    convolutional = blocks["0.weight"].dim() == 4
    if convolutional:
        channels = blocks["0.weight"].shape[1]
        side = map_side(pairs_PF.shape[1], channels)
        x = x.reshape(-1, channels, side, side)
    for i in range(NUM_BLOCKS):
        weight = blocks[f"{i}.weight"]
        x = conv2d(x, weight, padding=1) if convolutional else linear(x, weight)
        moments = (stats[f"relation.{i}.mean"], stats[f"relation.{i}.var"]) if stats else _moments(x, counts_P)
        used[f"relation.{i}.mean"], used[f"relation.{i}.var"] = moments
        x = relu(_normalised(x, *moments, blocks[f"{i}.scale"], blocks[f"{i}.shift"]))
        x = max_pool2d(x, 2) if convolutional and x.shape[-1] > 1 else x
    return dense(meta["dense"], x.flatten(1)).squeeze(1), used


def fresh_relation_buffers(meta: Meta) -> Params:
    """Stored statistics as in norm_statistics.fresh_buffers: mean 0, variance 1."""
    stored: Params = {}
    for i in range(NUM_BLOCKS):
        scale = meta["blocks"][f"{i}.scale"].unsqueeze(0)
        stored[f"relation.{i}.mean"], stored[f"relation.{i}.var"] = torch.zeros_like(scale), torch.ones_like(scale)
    return stored


def _moments(x: Tensor, counts_P: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, over pairs weighted by counts_P."""
    x_PCM = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    share_P11 = (counts_P / counts_P.sum()).reshape(-1, 1, 1)
    mean_C = (share_P11 * x_PCM).sum(dim=0).mean(dim=1)
    centred = x_PCM - mean_C.unsqueeze(1)
    return mean_C, (share_P11 * centred.square()).sum(dim=0).mean(dim=1)


def _normalised(x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    broadcast = (-1,) + (1,) * (x.dim() - 2)
    spread = scale * torch.rsqrt(var + NORM_EPS)
    return (x - mean.reshape(broadcast)) * spread.reshape(broadcast) + shift.reshape(broadcast)
