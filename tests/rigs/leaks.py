"""Leaks of one test: tasks, threads, processes, sockets and files that are there after it and were not before.

Equipment of a session or a module is set up before the test's own look, and so it is not counted.
"""

import asyncio
import gc
import os
import socket
import threading
import time
from dataclasses import dataclass, field

import psutil

GRACE = 2.0
"""Seconds in which what is about to end may do so."""
_KEPT_THREADS = ("asyncio_", "libvirt", "AnyIO", "ThreadPoolExecutor", "pydevd", "execnet", "Dummy", "waitpid-")
"""Threads that belong to an event loop or to a library for as long as the process lives."""
_SERVERS = frozenset({"postgres", "mariadbd"})
"""Started by the first test that asks, and shared by those after it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the process of the tests has open. Files are by descriptor and target."""

    threads: frozenset[str] = field(default_factory=frozenset)
    children: frozenset[str] = field(default_factory=frozenset)
    files: frozenset[str] = field(default_factory=frozenset)

    def without(self, other: "Resources") -> list[str]:
        return sorted((self.threads - other.threads) | (self.children - other.children) | (self.files - other.files))


def look() -> Resources:
    """Resources that are open now."""
    threads = {
        f"thread {thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not thread.name.startswith(_KEPT_THREADS)
    }
    children = set()
    for child in psutil.Process().children():
        try:
            if child.name() not in _SERVERS and child.status() != psutil.STATUS_ZOMBIE:
                children.add(f"process {child.name()} ({child.pid})")
        except psutil.NoSuchProcess:
            continue
    files = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if _is_counted_file(target) if target.startswith("/") else _listens(int(descriptor), target):
            files.add(f"{target} (descriptor {descriptor})")
    return Resources(frozenset(threads), frozenset(children), frozenset(files))


def left_after(before: Resources) -> list[str]:
    """Leaks since ``before``, once they have had `GRACE` to end."""
    end = time.monotonic() + GRACE
    left = look().without(before)
    while left and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
        left = look().without(before)
    return left


def _is_counted_file(path: str) -> bool:
    # libvirt's embedded driver lives as long as the process.
    return not path.startswith(("/dev/", "/proc/")) and not path.endswith("/driver.pid")


def _listens(descriptor: int, target: str) -> bool:
    """Whether it is a socket that listens. Connections come and go in pools; one that is forgotten is a warning."""
    if not target.startswith("socket:"):
        return False
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


async def tasks_left(before: set["asyncio.Task[object]"]) -> list[str]:
    """Tasks of this loop that were not there before, once they have had `GRACE` to end."""
    end = time.monotonic() + GRACE
    while True:
        left = {task for task in asyncio.all_tasks() - before if not _is_of_runner(task)}
        if not left or time.monotonic() > end:
            return sorted(f"task {task.get_name()}: {task.get_coro()}" for task in left)
        await asyncio.wait(left, timeout=0.1)


def _is_of_runner(task: "asyncio.Task[object]") -> bool:
    """Whether the task is the one in which the test runner itself calls tests and fixtures."""
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
