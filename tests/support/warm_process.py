"""Processes of `metarun` that start in a tenth of a second: forked from one process that has imported everything.

A fresh interpreter takes 3 s to import torch, of one core; the tests start some sixty runs. The forked run is a process
of its own, as a fresh one is: it has its own memory, signals, working directory and environment, and the test waits for
it and kills it. What a fresh interpreter does differently is tested with fresh interpreters (tests/torch_setup).
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: an orphan below this process becomes its child, so that it can wait for it
POLL_S = 0.005
REQUEST_BYTES = 1 << 20


class WarmProcess:
    """The part of subprocess.Popen that tests use; what it says is standard output and standard error together."""

    def __init__(self, pid: int, stdout: IO[str]) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(POLL_S)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        os.set_blocking(self.stdout.fileno(), False)
        said = b""
        while True:
            over = self.poll() is not None
            try:
                block = os.read(self.stdout.fileno(), REQUEST_BYTES)
            except BlockingIOError:
                block = None
            said += block or b""
            if block == b"" or (over and block is None):  # closed by all; or held open by a process that outlives it
                break
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            if not block:
                time.sleep(POLL_S)
        self.wait(timeout)
        self.stdout.close()
        return said.decode(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_warm(words: Sequence[str], cwd: Path, env: dict[str, str], new_session: bool = False) -> WarmProcess:
    ours, theirs = os.pipe()
    request = {"words": list(words), "cwd": str(cwd), "env": env, "new_session": new_session}
    source = _source()
    socket.send_fds(source, [json.dumps(request).encode()], [theirs])
    os.close(theirs)
    pid = int(source.recv(64))
    return WarmProcess(pid, os.fdopen(ours))


@functools.cache
def _source() -> socket.socket:
    """The connection to the process that is forked from; that process ends with this one."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0, "no such option before Linux 3.4"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    assert ours.recv(64) == b"ready", "the process to fork from did not start"
    return ours


def serve(connection: socket.socket) -> None:
    _import_all()
    connection.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 1)
        if not data:  # the test process is gone
            return
        ours, theirs = os.pipe()
        middle = os.fork()
        if middle == 0:
            run = os.fork()
            if run == 0:
                os.close(ours)
                os.close(theirs)
                _become(json.loads(data), fds[0], connection)
            os.write(theirs, str(run).encode())
            os._exit(0)
        os.close(fds[0])
        os.close(theirs)
        pid = os.read(ours, 64)
        os.close(ours)
        os.waitpid(middle, 0)  # from here on the run is a child of the test's process
        connection.send(pid)


def _import_all() -> None:
    from metarun.torch_setup.lazy_compiler import load_torch

    load_torch()
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg

    import metarun.cli.data
    import metarun.cli.run
    import metarun.cli.show
    import metarun.cli.test

    assert metarun.cli
    assert matplotlib.backends


def _become(request: dict[str, object], stdout: int, connection: socket.socket) -> NoReturn:
    from metarun.cli.main import console

    connection.close()
    if request["new_session"]:
        os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stdout, 2)
    os.close(stdout)
    os.chdir(str(request["cwd"]))
    env, words = request["env"], request["words"]
    assert isinstance(env, dict)
    assert isinstance(words, list)
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    sys.argv = ["metarun", *words]
    try:
        console()
    except SystemExit as leaving:
        sys.stdout.flush()
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        os._exit(code)
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
