"""Tasks shared among processes of one thread each: every one answers for its part, the first puts the parts together.

The others hold the algorithm and the network and no data: meta-parameters and episodes come to them, and their answers
go back, through shared memory, so that whatever an engine can be asked they can be asked too.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.utils._pytree import tree_map

from metarun.engine.task_axis import num_tasks
from metarun.errors import RunError
from metarun.models.functional import FunctionalNet
from metarun.torch_setup.allocator import Allocator, keep_pages
from metarun.torch_setup.lazy_compiler import load_torch
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Algorithm, Aux, Engine, EngineChoice, Episode, Meta

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ALIGN = 64  # bytes
SPARE = 2  # times what is needed, when a buffer must grow
LEAVE_S = 5.0  # to end a worker that was told to
DISMISSED_S = 2.0  # to end by itself


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the shared buffer."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class Post:
    """One end of a connection: words through a pipe, tensors through a buffer that grows as needed.

    What was received is valid until the answer to it is sent, for then the other side writes again.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._out, self._in = (torch.empty(0, dtype=torch.uint8) for _ in range(2))

    def send(self, word: Any, tree: Any) -> None:
        end = 0
        found: list[tuple[Slot, Tensor]] = []

        def place(value: Tensor) -> Slot:
            nonlocal end
            slot = Slot(value.dtype, tuple(value.shape), end)
            found.append((slot, value))
            end += -(-value.nbytes // ALIGN) * ALIGN
            return slot

        places = tree_map(place, tree)
        grown = end > len(self._out)
        if grown:
            self._out = torch.empty(SPARE * end, dtype=torch.uint8)
            self._out.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for slot, value in found:
            _view(self._out, slot).copy_(value.detach())
        self.pipe.send((word, places, self._out if grown else None))

    def receive(self) -> tuple[Any, Any]:
        word, places, grown = self.pipe.recv()
        if grown is not None:
            self._in = grown
        return word, tree_map(lambda slot: _view(self._in, slot), places)


def _view(room: Tensor, slot: Slot) -> Tensor:
    count = slot.dtype.itemsize
    for size in slot.shape:
        count *= size
    return room[slot.start : slot.start + count].view(slot.dtype).view(slot.shape)


@dataclass(frozen=True)
class Worker:
    process: SpawnProcess
    post: Post

    def ask(self, name: str, meta: Meta, episode: Episode, more: tuple[int, ...]) -> None:
        with self._alive():
            self.post.send((name, more), (meta, episode))

    def answer(self) -> Any:
        with self._alive():
            wait([self.post.pipe, self.process.sentinel])
            if not self.post.pipe.poll():
                raise EOFError
            failure, found = self.post.receive()
        if failure is not None:
            raise RunError(f"devices: a worker process failed ({failure})")
        return found

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as gone:
            self.process.join(LEAVE_S)
            code = self.process.exitcode
            how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            raise RunError(
                f"devices: a worker process ended ({how}), for want of memory perhaps; the same command goes on from "
                "the last checkpoint"
            ) from gone

    def dismiss(self) -> None:
        self.post.pipe.close()

    def end(self) -> None:
        """It keeps nothing that could be lost; left in order, it gives back what its compiler holds of the system."""
        self.process.join(DISMISSED_S)
        self.process.kill()
        self.process.join()


@contextmanager
def shared(
    count: int, builder: EngineChoice, algo: Algorithm[Any], net: FunctionalNet, allocator: Allocator
) -> Iterator[Engine]:
    """An engine over this process and `count` - 1 others, which live as long as the context."""
    parts = _packed(builder, algo, net, allocator)
    threads = torch.get_num_threads()
    workers: list[Worker] = []
    try:
        _start(workers, count - 1, parts)
        for worker in workers:
            worker.answer()
        torch.set_num_threads(1)
        yield _over(builder.build(algo, net), workers)
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.end()


def _packed(
    builder: EngineChoice, algo: Algorithm[Any], net: FunctionalNet, allocator: Allocator
) -> tuple[list[str], bytes]:
    """All that a worker is made of, and before it the modules that its parts come from."""
    try:
        parts = pickle.dumps((builder, algo, net, allocator))
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        raise RunError(f"devices: the model cannot be sent to another process ({problem}); set devices=1") from problem
    return sorted({type(layer).__module__ for layer in net.module.modules()}), parts


def _start(workers: list[Worker], count: int, parts: tuple[list[str], bytes]) -> None:
    """With the signals blocked: a worker never hears them, and ends when this process does."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # whose start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, *parts))
            process.start()
            theirs.close()
            workers.append(Worker(process, Post(ours)))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _over(engine: Engine, workers: Sequence[Worker]) -> Engine:
    def each(name: str, meta: Meta, episode: Episode, *more: int) -> tuple[list[int], list[Any]]:
        """How many tasks each process has, and its answer, of those that have any."""
        sizes, parts = _cut(episode, len(workers) + 1)
        asked = [(worker, part) for worker, part in zip(workers, parts[1:], strict=True) if num_tasks(part)]
        for worker, part in asked:
            worker.ask(name, meta, part, more)
        own = [getattr(engine, name)(meta, parts[0], *more)] if sizes[0] else []
        return [size for size in sizes if size], [*own, *(worker.answer() for worker, _ in asked)]

    def meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
        sizes, found = each("meta_grad", meta, episode, step)
        total = sum(sizes)

        def mean(*values: Tensor) -> Tensor:
            return torch.stack([value * (size / total) for value, size in zip(values, sizes, strict=True)]).sum(0)

        mixed: tuple[Meta, Aux] = tree_map(mean, *found)
        return mixed

    def scores(meta: Meta, episode: Episode) -> Tensor:
        return torch.cat(each("scores", meta, episode)[1])

    return replace(engine, meta_grad=meta_grad, scores=scores)


def _cut(episode: Episode, count: int) -> tuple[list[int], list[Episode]]:
    """Parts as equal as can be; the first, whose process has other work too, is never the larger."""
    less, over = divmod(num_tasks(episode), count)
    sizes = [less + (place >= count - over) for place in range(count)]
    ends = list(accumulate(sizes))
    spans = zip(ends, sizes, strict=True)
    return sizes, [tree_map(lambda stack, a=end - size, b=end: stack[a:b], episode) for end, size in spans]


def serve(pipe: Connection, modules: Sequence[str], parts: bytes) -> None:
    """What a worker does all its life."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # compiling takes no more processes than running
    load_torch()
    torch.set_num_threads(1)
    for name in modules:
        quiet_import(name)
    builder, algo, net, allocator = pickle.loads(parts)
    keep_pages(allocator)
    engine, post = builder.build(algo, net), Post(pipe)
    with suppress(EOFError, ConnectionError):  # the other side is gone
        post.send(None, ())
        while True:
            (name, more), (meta, episode) = post.receive()
            try:
                found = getattr(engine, name)(meta, episode, *more)
            except Exception as problem:
                post.send(f"{type(problem).__name__}: {problem}".splitlines()[0], ())
            else:
                post.send(None, found)
