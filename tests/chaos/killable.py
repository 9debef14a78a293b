"""Processes that die at a chosen step: `python -m tests.chaos.killable` forks them, each with a fuse.

A step is what one of our tasks does between two waits: at its beginning the fuse burns, and when
it is burnt down the process kills itself with SIGKILL. Nothing in the program knows of it: its
event loop is given a task factory that counts. A step burns it only if something has left the process
since the last one that did: a commit, a message; to die before or after a step that only thinks is
the same, since memory is lost either way. A host's every step burns it. So "killed between every two
steps" is every number from one to where the work is done. Forking from a process that has imported
everything costs a tenth of starting one.
"""

import asyncio
import fcntl
import functools
import json
import mmap
import os
import signal
import sqlite3
import struct
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pupitre import config
from pupitre.cluster.process import run as run_cluster
from pupitre.config import Settings
from pupitre.endpoint.process import run as run_endpoint
from pupitre.host.hypervisor import isolation
from pupitre.host.process import run as run_host
from pupitre.net import ops
from pupitre.net.ops import Ops

Main = Callable[[Settings, Ops], Awaitable[None]]
_NUMBERS = struct.Struct("=qq")
OURS = ("/pupitre/", "/nats/aio/subscription")
"""Whose tasks are counted: ours, and those in which a subscription calls our handlers."""


class KillSwitch:
    """Two numbers in a file that harness and process share: steps left until the end (0: for ever), steps taken.

    Whoever changes them holds the file's lock: a fuse that is put out either has killed or never will.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_NUMBERS.pack(0, 0))
        self._file = path.open("r+b")
        self._shared = mmap.mmap(self._file.fileno(), _NUMBERS.size)

    def close(self) -> None:
        self._shared.close()
        self._file.close()

    @property
    def left(self) -> int:
        return int(_NUMBERS.unpack(self._shared[:])[0])

    @property
    def taken(self) -> int:
        return int(_NUMBERS.unpack(self._shared[:])[1])

    def arm(self, steps: int) -> None:
        """Die at the ``steps``-th step from now."""
        with self._alone():
            self._shared[:] = _NUMBERS.pack(steps, 0)

    def disarm(self) -> bool:
        """Whether it came in time: False when the process is dead of it."""
        with self._alone():
            in_time = self.left > 0
            self._shared[:] = _NUMBERS.pack(0, 0)
        return in_time

    def step(self) -> None:
        if not self.left:
            return
        with self._alone():
            left, taken = _NUMBERS.unpack(self._shared[:])
            if not left:
                return
            self._shared[:] = _NUMBERS.pack(left - 1, taken + 1)
            if left == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class SideEffects:
    """Whether something has left the process since it was last asked.

    A commit counts for two steps: one that comes while it is under way, and the one after it.
    """

    def __init__(self) -> None:
        self._left = 1
        self.everything = False
        self.commits = 0

    def leave(self) -> None:
        self._left = max(self._left, 1)

    def told(self, statement: str) -> None:
        """SQLite begins to carry out ``statement``, in a thread of its own."""
        if statement == "COMMIT":
            self.commits += 1
            self._left = 2

    def ask(self) -> bool:
        left = self._left > 0
        self._left = max(self._left - 1, 0)
        return left or self.everything


SIDE_EFFECTS = SideEffects()


def traced_connection(*arguments: Any, **more: Any) -> sqlite3.Connection:
    """SQLite's own connection, which says what it is told."""
    connection = sqlite3.Connection(*arguments, **more)
    connection.set_trace_callback(SIDE_EFFECTS.told)
    return connection


class CountedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that burns the fuse before each step, where there are new traces of earlier ones."""

    def __init__(self, inner: Coroutine[Any, Any, Any], kill_switch: KillSwitch) -> None:
        self._inner = inner
        self._kill_switch = kill_switch
        self.__name__ = getattr(inner, "__name__", "")
        self.__qualname__ = getattr(inner, "__qualname__", "")

    def send(self, value: Any) -> Any:
        if SIDE_EFFECTS.ask():
            self._kill_switch.step()
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        if SIDE_EFFECTS.ask():
            self._kill_switch.step()
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()


class SendingCoroutine(CountedCoroutine):
    """The task that gives messages to the broker: what it does leaves traces."""

    def send(self, value: Any) -> Any:
        SIDE_EFFECTS.leave()
        return self._inner.send(value)


def counted(work: Any, kill_switch: KillSwitch) -> Any:
    code = getattr(work, "cr_code", None)
    if code is None:
        return work
    if code.co_name == "_flusher":
        return SendingCoroutine(work, kill_switch)
    return CountedCoroutine(work, kill_switch) if any(part in code.co_filename for part in OURS) else work


def killable(main: Main, kill_switch: KillSwitch) -> Main:
    """``main``, whose tasks burn the fuse."""

    async def run(settings: Settings, own: Ops) -> None:
        def task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> "asyncio.Task[Any]":
            return asyncio.Task(counted(work, kill_switch), loop=loop, **more)

        asyncio.get_running_loop().set_task_factory(task)  # type: ignore[arg-type]
        await main(settings, own)

    return run


def run_killable(role: str, kill_switch: Path) -> int:
    """The life of one process; its exit code."""
    main: Main
    sqlite3.connect = traced_connection  # type: ignore[assignment]
    if role == "host":
        SIDE_EFFECTS.everything = True
        main = functools.partial(run_host, isolation.enter(config.load()))
    else:
        main = {"cluster": run_cluster, "endpoint": run_endpoint}[role]
    return ops.run_process(role, killable(main, KillSwitch(kill_switch)))


def serve() -> None:
    """Fork a process for each line of standard input; end them all at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    born: list[int] = []
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _begin(order)
        born.append(pid)
        print(pid, flush=True)
    for pid in born:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _begin(order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    code = 1
    try:
        code = run_killable(order["role"], Path(order["fuse"]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
