"""Random numbers of a task: equal to a computation in plain integers, and independent of the other tasks."""

from __future__ import annotations

import torch

from metarun.data.tasks import random_bits

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def plain_bits(seed: int, split: int, index: int, stream: int, count: int) -> list[int]:
    state = seed
    for part in (split, stream):
        state = (mix((state + GAMMA) & WORD) + part) & WORD
    state = mix((mix((state + GAMMA) & WORD) + index) & WORD)
    return [mix((state + k * GAMMA) & WORD) for k in range(1, count + 1)]


def test_bits_are_those_of_unbounded_integers() -> None:
    index = torch.tensor([0, 1, 7, 2**40])
    drawn = random_bits.bits(123, 2, index, 5, 6)
    expected = [plain_bits(123, 2, int(i), 5, 6) for i in index]
    assert [[value & WORD for value in row] for row in drawn.tolist()] == expected


def test_splitmix_reference_values() -> None:
    """The published first outputs of SplitMix64 from state 1234567."""
    state, out = 1234567, []
    for _ in range(3):
        state = (state + GAMMA) & WORD
        out.append(mix(state))
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_row_depends_on_its_own_number_only() -> None:
    all_at_once = random_bits.bits(0, 0, torch.arange(50), 1, 9)
    backwards = random_bits.bits(0, 0, torch.arange(49, -1, -1), 1, 9).flip(0)
    one_by_one = torch.cat([random_bits.bits(0, 0, torch.tensor([i]), 1, 9) for i in range(50)])
    assert torch.equal(all_at_once, backwards)
    assert torch.equal(all_at_once, one_by_one)


def test_seed_split_stream_and_number_all_matter() -> None:
    index = torch.arange(1000)
    base = random_bits.bits(0, 0, index, 1, 4)
    for other in (
        random_bits.bits(1, 0, index, 1, 4),
        random_bits.bits(0, 1, index, 1, 4),
        random_bits.bits(0, 0, index, 2, 4),
    ):
        assert not (base == other).any()
    assert torch.unique(base).numel() == base.numel()


def test_uniform_fills_the_unit_interval() -> None:
    u = random_bits.uniform_floats(3, 1, torch.arange(20_000), 1, 5)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    expected = u.numel() / 64
    chi_square = ((torch.histc(u, 64, 0, 1) - expected).square() / expected).sum()
    assert float(chi_square) < 63 + 5 * (2 * 63) ** 0.5
    assert abs(float(torch.corrcoef(u.T).fill_diagonal_(0).abs().max())) < 5 / 20_000**0.5


def test_choose_draws_without_replacement_and_fairly() -> None:
    chosen = random_bits.distinct(random_bits.bits(0, 0, torch.arange(30_000), 1, 6), 3)
    assert all(len(set(row)) == 3 for row in chosen[:200].tolist())
    ordered = chosen[:, 0] * 36 + chosen[:, 1] * 6 + chosen[:, 2]
    counts = torch.unique(ordered, return_counts=True)[1]
    assert len(counts) == 6 * 5 * 4
    expected = 30_000 / 120
    assert float(((counts - expected) ** 2 / expected).sum()) < 119 + 5 * (2 * 119) ** 0.5
