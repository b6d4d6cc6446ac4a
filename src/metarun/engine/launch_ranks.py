"""Starting ranks, finding those that torchrun has started, and ending all of them when one ends.

Rank 0 holds a socket to every other rank. The system closes it when either end dies, in whatever way: a thread at each
end waits for that. So a rank that ends takes all others with it, even those in a long computation.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import IO, NamedTuple, cast

import torch
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed has them without types
from torch.distributed.distributed_c10d import ProcessGroupGloo, ProcessGroupNCCL
from torch.distributed.rendezvous import rendezvous

from metarun.engine.ranks import STOP_SIGNALS, Groups, OneRank, ProcessGroup, RankGroup, Ranks
from metarun.errors import ConfigError, RunError
from metarun.torch_setup.torchrun import torchrun_count

READY = b"\0"  # the first byte that a started rank sends
RANK_BYTES = 4  # the first bytes that a rank of torchrun sends: its number
GRACE_S = 5.0  # for a rank to notice by itself that another has ended
TELL_S = 1.0  # for rank 0 to hear of a failure before torchrun does
LEAVE_S = 3.0  # for a started rank to end by itself
NO_TIMEOUT = timedelta(days=7)  # of a sum: a rank may compile for minutes, and one that ends is noticed otherwise
LOOPBACK = "127.0.0.1"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"

Task = Callable[[RankGroup, object], None]
"""What a started rank does: (its ranks, the order it was given) -> nothing."""


class PeersWatch:
    """On rank 0: knows when another rank has ended, and ends this one if it is in a long computation."""

    def __init__(self, sockets: Mapping[int, socket.socket], how_ended: Callable[[int], str]) -> None:
        self._sockets, self._how_ended = dict(sockets), how_ended
        self._ready: set[int] = set()
        self._lost: str | None = None  # the line for the user about the rank that ended first
        self._news = threading.Condition()
        self._noticed = threading.Event()  # the main thread is ending the run
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        with self._news:
            self._news.wait_for(lambda: self._lost or len(self._ready) == len(self._sockets))
        if self._lost:
            self._noticed.set()
            raise RunError(self._lost)

    def explained(self, problem: RuntimeError) -> RunError:
        """Why a sum over ranks failed."""
        with self._news:
            self._news.wait_for(lambda: self._lost, GRACE_S)
        self._noticed.set()
        return RunError(self._lost or f"devices: the ranks cannot reach each other ({_line_of(problem)})")

    def leave(self) -> None:
        """Closes the sockets: the other ranks end, now that they are done or this rank has failed."""
        self._noticed.set()
        for each in self._sockets.values():
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in self._sockets.values():
            each.close()

    def _listen(self) -> None:
        received = dict.fromkeys(self._sockets, b"")
        with selectors.DefaultSelector() as selector:
            for rank, each in self._sockets.items():
                selector.register(each, selectors.EVENT_READ, rank)
            while self._sockets:  # none: a group of one rank
                for rank in [key.data for key, _ in selector.select()]:
                    data = _receive_bytes(self._sockets[rank])
                    if not data:
                        self._end(rank, received[rank].lstrip(READY).decode(errors="replace"))
                        return
                    received[rank] += data
                    with self._news:
                        self._ready.add(rank)
                        self._news.notify_all()

    def _end(self, rank: int, why: str) -> None:
        if self._noticed.is_set():
            return
        how = f" failed ({why})" if why else self._how_ended(rank)
        with self._news:
            self._lost = f"devices: rank {rank}{how}"
            self._news.notify_all()
        if not self._noticed.wait(GRACE_S):
            print(f"metarun: {self._lost}", file=sys.stderr, flush=True)
            os._exit(RunError.exit_code)


class FirstRankWatch:
    """On every other rank: ends it, without a word, when rank 0 has ended."""

    def __init__(self, to_first: socket.socket) -> None:
        self._socket = to_first
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def explained(self, problem: RuntimeError) -> RunError:
        """A sum failed because a rank has ended. Rank 0 tells the user, and ends this rank by ending itself."""
        self._thread.join()
        return RunError(f"devices: rank 0 ended ({_line_of(problem)})")

    def tell_ready(self) -> None:
        self._send(READY)

    def tell_failure(self, problem: BaseException) -> None:
        """Tells rank 0, which tells the user when its next sum fails, as it does once this rank has ended."""
        expected = isinstance(problem, ConfigError | RunError)
        text = _line_of(problem) if expected else f"{type(problem).__name__}: {_line_of(problem)}"
        self._leaving.set()
        self._send(text.encode())
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Waits until rank 0 has finished what it does alone."""
        self._leaving.set()
        self._thread.join()

    def _send(self, data: bytes) -> None:
        with suppress(OSError):  # rank 0 has ended, and ends this rank
            self._socket.sendall(data)

    def _listen(self) -> None:
        while _receive_bytes(self._socket):
            pass
        if not self._leaving.is_set():
            os._exit(RunError.exit_code)


def _receive_bytes(from_rank: socket.socket) -> bytes:
    """Empty when the other end is closed."""
    try:
        return from_rank.recv(4096)
    except OSError:
        return b""


def _line_of(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), "")


@contextmanager
def started_ranks(count: int, kind: str, task: str, order: object) -> Iterator[RankGroup]:
    """Context manager: this process is rank 0 of `count` ranks on this machine, on CPUs or GPUs (`kind`: cpu, cuda).

    Each of the others is a fresh interpreter with this one's sys.path and one thread. It calls `task`, named as
    "module:function", with its ranks and with `order`, which consists of plain values. It hears no signal.
    """
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    told = {"count": count, "kind": kind, "port": port, "order": order}
    children: dict[int, StartedRank] = {}
    try:
        for rank in range(1, count):
            children[rank] = _start(task, {**told, "rank": rank})
        sockets = {rank: child.socket for rank, child in children.items()}
        watch = PeersWatch(sockets, lambda rank: children[rank].how_ended())
        try:
            watch.wait_until_ready()
            device = device_of_rank(kind, 0)
            with _connected(store, 0, count, device, one_machine=True) as groups:
                yield RankGroup(0, count, device, groups, watch.explained)
        finally:
            watch.leave()
    finally:
        for child in children.values():
            child.end()


class StartedRank(NamedTuple):
    """A child process, from the side of rank 0."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    errors: IO[bytes]  # its stderr, of which the user sees one line if it cannot say itself why it failed

    def how_ended(self) -> str:
        code = 0
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(LEAVE_S)
        if code < 0:
            name = signal.Signals(-code).name
            return f" ended ({name}), for want of memory perhaps; the same command goes on from the last checkpoint"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").splitlines()
        return f" failed ({lines[-1] if lines else f'exit code {code}'})"

    def end(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LEAVE_S)
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _start(task: str, told: Mapping[str, object]) -> StartedRank:
    """With signals blocked, so that none arrives before the child ignores them."""
    module, _, function = task.partition(":")
    ours, theirs = socket.socketpair()
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from metarun.torch_setup.lazy_compiler import load_torch; load_torch(); "
        f"from {module} import {function}; from {__name__} import serve; serve({theirs.fileno()}, {function})"
    )
    errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by StartedRank.end
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[theirs.fileno()],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    with suppress(OSError):  # the child has ended, as the watch will find
        ours.sendall(json.dumps(told).encode() + b"\n")
    return StartedRank(process, ours, errors)


def serve(descriptor: int, task: Task) -> None:
    """All that a started rank does. It never returns."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    to_first = socket.socket(fileno=descriptor)
    line = to_first.makefile("rb").readline()
    if not line:  # rank 0 has ended
        os._exit(RunError.exit_code)
    told, watch = json.loads(line), FirstRankWatch(to_first)
    try:
        torch.set_num_threads(1)
        rank, count, device = told["rank"], told["count"], device_of_rank(told["kind"], told["rank"])
        store = TCPStore(LOOPBACK, told["port"], wait_for_workers=False)
        watch.tell_ready()
        with _connected(store, rank, count, device, one_machine=True) as groups:
            task(RankGroup(rank, count, device, groups, watch.explained), told["order"])
            watch.leave()
    except BaseException as problem:
        watch.tell_failure(problem)
        os._exit(RunError.exit_code)
    os._exit(0)


_connections = itertools.count()  # each has its own keys in torchrun's store


@contextmanager
def ranks_of_torchrun(kind: str) -> Iterator[Ranks]:
    """Context manager: the ranks that torchrun has started, or this process alone."""
    count = torchrun_count() or 1
    if count == 1:
        yield OneRank()
        return
    rank = int(os.environ["RANK"])
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    device = device_of_rank(kind, int(os.environ.get("LOCAL_RANK", rank)))
    store = PrefixStore(f"metarun{next(_connections)}", next(rendezvous("env://"))[0])
    store.set_timeout(NO_TIMEOUT)
    watch: PeersWatch | FirstRankWatch
    if rank == 0:
        resume = "; the same command goes on from the last checkpoint"
        watch = PeersWatch(_sockets_to_others(store, one_machine, count), lambda _: f" ended{resume}")
    else:
        watch = FirstRankWatch(_socket_to_first(store, one_machine, rank))
    try:
        with _connected(store, rank, count, device, one_machine) as groups:
            yield RankGroup(rank, count, device, groups, watch.explained)
    except BaseException as problem:
        if isinstance(watch, FirstRankWatch):
            watch.tell_failure(problem)
            time.sleep(TELL_S)  # torchrun is about to end rank 0 too
            os._exit(RunError.exit_code)
        raise
    finally:
        watch.leave()


def _sockets_to_others(store: Store, one_machine: bool, count: int) -> dict[int, socket.socket]:
    sockets: dict[int, socket.socket] = {}
    with socket.create_server((LOOPBACK if one_machine else "", 0), backlog=count) as listener:
        store.set("watch", str(listener.getsockname()[1]))
        while len(sockets) < count - 1:
            accepted, _ = listener.accept()
            sockets[int.from_bytes(accepted.recv(RANK_BYTES))] = accepted
    return sockets


def _socket_to_first(store: Store, one_machine: bool, rank: int) -> socket.socket:
    host = LOOPBACK if one_machine else os.environ["MASTER_ADDR"]  # the machine of rank 0
    to_first = socket.create_connection((host, int(store.get("watch"))))
    to_first.sendall(rank.to_bytes(RANK_BYTES))
    return to_first


def device_of_rank(kind: str, local_rank: int) -> torch.device:
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


@contextmanager
def _connected(store: Store, rank: int, count: int, device: torch.device, one_machine: bool) -> Iterator[Groups]:
    """Groups of torch.distributed, made directly: a process may have several, and torch's compiler is not loaded."""
    with _loopback_alone() if one_machine else nullcontext():
        cpu = cast(ProcessGroup, ProcessGroupGloo(store, rank, count, NO_TIMEOUT))
    if device.type == "cpu":
        yield Groups(cpu, None)
        return
    torch.cuda.set_device(device)
    options = ProcessGroupNCCL.Options()
    options._timeout = NO_TIMEOUT
    nccl = ProcessGroupNCCL(PrefixStore("nccl", store), rank, count, options)
    yield Groups(cpu, cast(ProcessGroup, nccl))
    nccl.shutdown()  # not after a failure: it would wait for ranks that have ended


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """Otherwise gloo looks up this machine's name, which may be unknown to the network."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    chosen = GLOO_INTERFACE in os.environ or not names
    if not chosen:
        os.environ[GLOO_INTERFACE] = names[0]
    try:
        yield
    finally:
        if not chosen:
            del os.environ[GLOO_INTERFACE]
