"""The outer step against closed forms: each transform, what a skipped step leaves alone, and a resumed chain."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.config.compose import compose
from metarun.config.schema import RunConfig, check_config
from metarun.errors import ConfigError
from metarun.train.finite import NonFinite
from metarun.train.outer import (
    Accumulate,
    ClipByNorm,
    ClipByValue,
    MovingAverage,
    OuterGradient,
    OuterStep,
    OuterTransform,
    SkipNotFinite,
    check_chain,
    init_memories,
)
from metarun.train.schedule import Constant, Linear, Schedule
from metarun.train.state import OuterMemory, State, learned
from metarun.types import Aux, Meta
from support.engines import vmap_engine
from support.small import SEED, episodes, maml, network

SGD: dict[str, Any] = {"cls": torch.optim.SGD, "lr": 0.1}
MOMENTUM: dict[str, Any] = {"cls": torch.optim.SGD, "lr": 0.1, "momentum": 0.9, "dampening": 0.3}
ADAM: dict[str, Any] = {"cls": torch.optim.Adam, "lr": 0.1}
RPROP: dict[str, Any] = {"cls": torch.optim.Rprop, "lr": 0.1}
OPTIMIZERS = pytest.mark.parametrize("optim", [SGD, MOMENTUM, ADAM, RPROP], ids=["sgd", "momentum", "adam", "rprop"])
NAN, INF = float("nan"), float("inf")


def begun(
    transforms: Sequence[OuterTransform],
    optim: dict[str, Any] = SGD,
    schedule: Schedule | None = None,
    steps: int = 100,
) -> tuple[State, OuterStep]:
    dice = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(2, generator=dice, dtype=torch.float64) for name in ("v", "w")}
    meta: Meta = {"weights": weights, "buffers": {"m": torch.zeros(2, dtype=torch.float64)}}
    parameters = learned(meta)
    optimizer = optim["cls"](parameters, **{name: value for name, value in optim.items() if name != "cls"})
    state = State(meta, optimizer, init_memories(transforms, parameters))
    return state, OuterStep(schedule or Constant(), optim["lr"], steps, transforms)


def gradient(step: int) -> Meta:
    dice = torch.Generator().manual_seed(100 + step)
    return {"weights": {name: torch.randn(2, generator=dice, dtype=torch.float64) for name in ("v", "w")}}


def advance(state: State, outer: OuterStep, number: int, bad: str = "") -> None:
    """The state's next step, with gradient and buffers that `number` says; `bad`: what of it is not finite."""
    grads, loss = gradient(number), torch.tensor(NAN if bad == "loss" else 1.0)
    buffers = {"m": torch.full((2,), float(number), dtype=torch.float64)}
    if bad:
        grads["weights"]["v"][0] = INF if bad == "gradient" else NAN
        buffers["m"][1] = NAN
    outer(state, grads, Aux({"loss": loss}, buffers))
    state.step += 1


def bits(state: State) -> bytes:
    file = io.BytesIO()
    torch.save(state.saved(), file)
    file.seek(0)
    return repr(_exact(torch.load(file, weights_only=True))).encode()


def _exact(value: object) -> object:
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: _exact(each) for name, each in value.items()}
    return [_exact(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("transforms", "moved"),
    [
        ([], [3.0, -4.0]),
        ([ClipByValue(3.5)], [3.0, -3.5]),
        ([ClipByNorm(2.5)], [1.5, -2.0]),
        ([ClipByNorm(10.0)], [3.0, -4.0]),
        ([ClipByValue(3.0), ClipByNorm(2.0)], [2 / 2**0.5, -2 / 2**0.5]),
        ([ClipByNorm(2.5), ClipByValue(1.75)], [1.5, -1.75]),
    ],
)
def test_clips_in_the_order_of_the_list_and_follows_the_schedule(
    transforms: list[OuterTransform], moved: list[float]
) -> None:
    weight = torch.zeros(2, dtype=torch.float64)
    meta: Meta = {"weights": {"w": weight}, "buffers": {"m": torch.ones(2)}}
    state = State(meta, torch.optim.SGD([weight], lr=99.0), init_memories(transforms, [weight]), step=5)
    given = torch.tensor([3.0, -4.0], dtype=torch.float64)
    OuterStep(Linear(0.0), 2.0, 10, transforms)(state, {"weights": {"w": given}}, Aux({"loss": torch.ones(())}, {}))
    assert weight.tolist() == pytest.approx([-value for value in moved], abs=1e-12)  # rate 2.0 * 0.5
    assert state.meta["buffers"]["m"].tolist() == [1, 1]
    assert given.tolist() == [3.0, -4.0]


@pytest.mark.parametrize("optim", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("clip", [[], [ClipByNorm(0.5)]], ids=["", "clipped"])
def test_accumulated_batches_equal_one_large_batch(optim: dict[str, Any], clip: list[OuterTransform]) -> None:
    """4 batches of 3 tasks, and one of the 12: the same learning to float noise, by real meta-gradients of MAML."""
    net, weights = network("mlp")
    algo = maml("batch")
    engine = vmap_engine(chunk=None).build(algo, net)
    stacks = [[episodes("mlp", seed=10 * number + part) for part in range(4)] for number in range(5)]
    ends = []
    for transforms in ([Accumulate(4), *clip], clip):
        meta = {group: {n: v.clone() for n, v in p.items()} for group, p in algo.init(net, weights, SEED).items()}
        optimizer = optim["cls"](learned(meta), **{name: value for name, value in optim.items() if name != "cls"})
        state = State(meta, optimizer, init_memories(transforms, learned(meta)))
        outer = OuterStep(Constant(), optim["lr"], 20, transforms)
        for stack in stacks:
            whole = torch.utils._pytree.tree_map(lambda *parts: torch.cat(parts), *stack)
            for episode in stack if Accumulate(4) in transforms else [whole]:
                outer(state, *engine.meta_grad(state.meta, episode, 0))
                state.step += 1
        ends.append(state)
    assert [end.step for end in ends] == [20, 5]
    for name, value in ends[0].meta["weights"].items():
        assert torch.allclose(value, ends[1].meta["weights"][name], rtol=1e-9, atol=1e-11), name
        assert not torch.equal(value, weights[name]), f"{name} did not move"


def test_the_optimizer_steps_at_the_last_of_the_accumulated_steps_with_its_rate() -> None:
    state, outer = begun([Accumulate(3)], schedule=Linear(0.0), steps=12)
    before = [value.clone() for value in learned(state.meta)]
    for number in range(6):
        held = [value.clone() for value in learned(state.meta)]
        advance(state, outer, number)
        assert all(map(torch.equal, held, learned(state.meta))) == (number not in (2, 5))
        assert state.meta["buffers"]["m"].tolist() == [number, number]  # buffers are not held back
    expected = before
    for last in (2, 5):
        means = [sum(parts) / 3 for parts in zip(*(learned(gradient(last - i)) for i in range(3)), strict=True)]
        expected = [value - 0.1 * (1 - last / 12) * mean for value, mean in zip(expected, means, strict=True)]
    for value, wanted in zip(learned(state.meta), expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-12)


@OPTIMIZERS
@pytest.mark.parametrize("bad", ["loss", "gradient", "nan"])
@pytest.mark.parametrize("at", [{0, 1}, {3}, {2, 5, 6}], ids=["first", "once", "often"])
def test_a_skipped_step_is_one_that_never_was(optim: dict[str, Any], bad: str, at: set[int]) -> None:
    chain = [SkipNotFinite(3), ClipByNorm(1.5), MovingAverage(0.5)]
    state, outer = begun(chain, optim)
    never, plain = begun(chain, optim)
    for number in range(9):
        advance(state, outer, number, bad if number in at else "")
        if number not in at:
            advance(never, plain, number)
    assert state.step == 9
    assert outer.metrics(state) == {"train/skipped": len(at)}
    state.step, state.outer[0] = never.step, never.outer[0]  # the only difference: the counts
    assert bits(state) == bits(never)
    assert state.optimizer.state or optim is SGD


def test_a_skipped_step_does_not_count_in_the_accumulated_mean() -> None:
    chain = [SkipNotFinite(4), Accumulate(3)]
    state, outer = begun(chain)
    expected = [value.clone() for value in learned(state.meta)]
    bad = {1, 5, 6, 7, 8}  # of the third window all
    for number in range(12):
        advance(state, outer, number, "gradient" if number in bad else "")
    for window in ((0, 2), (3, 4), (), (9, 10, 11)):
        for place in range(2):
            if window:
                mean = sum(learned(gradient(number))[place] for number in window) / len(window)
                expected[place] = expected[place] - 0.1 * mean
    for value, wanted in zip(learned(state.meta), expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-12)


@OPTIMIZERS
def test_a_window_of_skipped_steps_leaves_the_optimizer_alone(optim: dict[str, Any]) -> None:
    state, outer = begun([SkipNotFinite(9), Accumulate(2)], optim)
    for number in range(4):
        advance(state, outer, number)
    before = bits_of_optimizer(state)
    for number in range(4, 8):
        advance(state, outer, number, "loss")
    assert bits_of_optimizer(state) == before


def bits_of_optimizer(state: State) -> str:
    return repr(_exact(state.optimizer.state_dict()["state"])) + repr(_exact(state.meta))


def test_after_so_many_skipped_in_a_row_the_run_gives_up() -> None:
    state, outer = begun([SkipNotFinite(3)])
    for number in range(12):
        advance(state, outer, number, "loss" if number in (1, 2, 4, 5, 7, 8, 9, 10) else "")
        if number < 9:
            outer.check(state)
    with pytest.raises(NonFinite) as caught:  # though asked two steps late
        outer.check(state)
    assert (caught.value.step, caught.value.in_a_row) == (9, 3)


def test_without_skipping_the_first_bad_step_is_named() -> None:
    state, outer = begun([ClipByNorm(1.0)])
    for number in range(4):
        advance(state, outer, number, "gradient" if number == 2 else "")
    with pytest.raises(NonFinite) as caught:
        outer.check(state)
    assert (caught.value.step, caught.value.in_a_row) == (2, 1)


def test_the_moving_average_is_its_closed_form() -> None:
    state, outer = begun([MovingAverage(0.8)], ADAM)
    for value, initial in zip(learned(outer.averaged(state)), learned(state.meta), strict=True):
        assert torch.equal(value, initial)  # before the first step
    seen: list[list[Tensor]] = []
    for number in range(7):
        advance(state, outer, number)
        seen.append([value.clone() for value in learned(state.meta)])
        shares = [0.2 * 0.8 ** (number - i) / (1 - 0.8 ** (number + 1)) for i in range(number + 1)]
        assert sum(shares) == pytest.approx(1)
        averaged = outer.averaged(state)
        for place, value in enumerate(learned(averaged)):
            terms = [share * one[place] for share, one in zip(shares, seen, strict=True)]
            assert torch.allclose(value, torch.stack(terms).sum(0), rtol=1e-12)
        assert averaged["buffers"] is state.meta["buffers"]
    assert [*averaged] == [*state.meta]


def test_accumulated_steps_count_once_in_the_average() -> None:
    ends = []
    for chain in ([MovingAverage(0.7), Accumulate(2)], [Accumulate(2), MovingAverage(0.7)]):
        state, outer = begun(chain)
        seen = []
        for number in range(6):
            advance(state, outer, number)
            if number % 2:
                seen.append([value.clone() for value in learned(state.meta)])
        ends.append(learned(outer.averaged(state)))
        for place, value in enumerate(ends[-1]):
            terms = [0.3 * 0.7 ** (2 - i) * one[place] for i, one in enumerate(seen)]
            assert torch.allclose(value, torch.stack(terms).sum(0) / (1 - 0.7**3), rtol=1e-12)
    assert all(map(torch.equal, *ends))


CHAINS: dict[str, list[OuterTransform]] = {
    "none": [],
    "clip_by_value": [ClipByValue(0.5)],
    "clip_by_norm": [ClipByNorm(0.5)],
    "accumulate": [Accumulate(4)],
    "skip_not_finite": [SkipNotFinite(3)],
    "moving_average": [MovingAverage(0.9)],
    "all": [SkipNotFinite(3), ClipByNorm(0.5), Accumulate(4), ClipByValue(0.1), MovingAverage(0.9)],
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("at", [1, 6, 8])
def test_resumed_equals_uninterrupted(chain: str, at: int) -> None:
    bad = {0, 5, 9, 10} if any(one.skips for one in CHAINS[chain]) else set()
    state, outer = begun(CHAINS[chain], ADAM)
    for number in range(at):
        advance(state, outer, number, "loss" if number in bad else "")
    saved = copy.deepcopy(state.saved())
    again, resumed = begun(CHAINS[chain], ADAM)
    again.restore(saved)
    assert bits(again) == bits(state)
    for number in range(at, 16):
        for each, step in ((state, outer), (again, resumed)):
            advance(each, step, number, "loss" if number in bad else "")
    assert bits(again) == bits(state)


def test_a_checkpoint_from_before_the_transforms_is_taken() -> None:
    state, outer = begun([])
    advance(state, outer, 0)
    saved = {name: value for name, value in state.saved().items() if name != "outer"}
    again, _ = begun([])
    again.restore(saved)
    assert bits(again) == bits(state)


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Refuses to read a tensor's value, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("chain", CHAINS)
def test_no_step_waits_for_the_device(chain: str) -> None:
    """But for the first, with skip_not_finite, at which the optimizer makes its tensors."""
    state, outer = begun(CHAINS[chain], {**MOMENTUM})
    for number in range(4):
        advance(state, outer, number)
    with NoWaiting():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for number in range(4, 12):
            advance(state, outer, number)
    with pytest.raises(AssertionError, match="reads a value"), NoWaiting():  # type: ignore[no-untyped-call]  # likewise
        state.meta["weights"]["v"][0].item()


class Halve(OuterTransform):
    """Without a memory."""

    def update(self, gradient: OuterGradient, memory: OuterMemory, passes: bool) -> tuple[OuterGradient, OuterMemory]:
        return gradient._replace(values=[value / 2 for value in gradient.values]), memory


def test_a_transform_of_ones_own_needs_one_method() -> None:
    state, outer = begun([Halve()])
    before = [value.clone() for value in learned(state.meta)]
    advance(state, outer, 0)
    for value, old, grad in zip(learned(state.meta), before, learned(gradient(0)), strict=True):
        assert torch.allclose(value, old - 0.05 * grad, rtol=1e-12)


def configured(*words: str) -> RunConfig:
    composed = compose(["track=local", "train.steps=24", *words])
    return check_config(composed.plain, composed.choices)


def test_the_list_of_the_configuration() -> None:
    assert configured().train.outer == ()
    words = "train.outer=[{skip_not_finite: 5},{clip_by_norm: 10},{accumulate: {every: 4}},{moving_average: 0.99}]"
    chain = (SkipNotFinite(5), ClipByNorm(10.0), Accumulate(4), MovingAverage(0.99))
    assert configured(words, "eval.weights=average").train.outer == chain
    own = "train.outer=[{_target_: metarun.train.outer.ClipByValue, limit: 3}]"
    assert configured(own).train.outer == (ClipByValue(3.0),)


@pytest.mark.parametrize(
    ("outer", "line"),
    [
        ("5", "train.outer=5: need a list of transforms"),
        ("[clip_by_norm]", "train.outer[0]=clip_by_norm: need one name and its value, such as {clip_by_norm: 10.0}"),
        ("[{clip_by_norm:1,accumulate:2}]", "need one name and its value"),
        ("[{clip_by_value:1},{acumulate:2}]", "train.outer[1]=acumulate: no such transform, did you mean accumulate?"),
        ("[{noise:1}]", "train.outer[0]=noise: no such transform (known: skip_not_finite, clip_by_value,"),
        ("[{clip_by_norm:high}]", "train.outer[0].clip_by_norm.limit=high: need a number"),
        ("[{clip_by_norm:null}]", "train.outer[0].clip_by_norm.limit=null: need a number"),
        ("[{clip_by_norm:0}]", "train.outer[0].clip_by_norm.limit=0.0: need a number above 0"),
        ("[{clip_by_norm:{max:1}}]", "train.outer[0].clip_by_norm.max: unknown key"),
        ("[{accumulate:0}]", "train.outer[0].accumulate.every=0: need at least 1 meta-step"),
        ("[{accumulate:1.5}]", "train.outer[0].accumulate.every=1.5: need a whole number"),
        (
            "[{accumulate:7}]",
            "train.outer[0].accumulate=7: the last 3 of 24 steps would be lost; make steps",
        ),
        ("[{accumulate:2},{accumulate:3}]", "train.outer[1]=accumulate: stands in the list twice"),
        ("[{skip_not_finite:0}]", "train.outer[0].skip_not_finite.in_a_row=0: need at least 1 step"),
        ("[{clip_by_norm:1},{skip_not_finite:3}]", "train.outer[1]=skip_not_finite: has to stand first"),
        ("[{moving_average:1}]", "train.outer[0].moving_average.decay=1.0: need a number between 0 and 1"),
        ("[{_target_:torch.nn.Linear}]", "train.outer[0]._target_=torch.nn.Linear: need a dataclass derived from"),
    ],
)
def test_a_mistake_in_the_list_is_named(outer: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(f"train.outer={outer}")
    assert line in str(caught.value)


def test_an_average_that_nobody_keeps_is_not_tested() -> None:
    with pytest.raises(ConfigError, match=r"eval.weights=average: train.outer averages nothing; add {moving_average"):
        configured("eval.weights=average")


def test_steps_are_a_multiple_of_what_is_accumulated() -> None:
    check_chain([Accumulate(4)], 12)
    with pytest.raises(ValueError, match="the last 1 of 13 steps"):
        check_chain([Accumulate(4)], 13)
