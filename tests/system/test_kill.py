"""Every process is killed once while a desktop runs: the desktop goes on, and its console opens again."""

import os
import signal
from pathlib import Path

import httpx2
import psutil
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from pupitre.images.store import ImageStore
from tests.rigs.rest_client import Person, Serial, emulators, overlay, person
from tests.rigs.stack import Stack


def opens(someone: Person, desktop: str) -> bool:
    """Whether a console of the desktop greets."""
    try:
        url, ticket = someone.ticket(desktop)
        with connect(url, subprotocols=[Subprotocol("binary"), Subprotocol(ticket)], compression=None) as stream:
            return stream.recv(timeout=10, decode=False).startswith(b"RFB")
    except (AssertionError, OSError, TimeoutError, httpx2.HTTPError, WebSocketException):
        return False


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize("name", ["nats", "cluster", "endpoint", "host", "web"])
def test_a_killed_process_costs_no_desktop(stack: Stack, name: str) -> None:
    with person(stack.url, "teacher", stack.password("teacher")) as teacher:
        desktop = teacher.start()
        (emulator,) = emulators(desktop)
        killed = stack.pid(name)
        os.kill(killed, signal.SIGKILL)
        stack.wait_until(f"another {name} is ready", lambda: _is_back(stack, name, killed))
        stack.wait_until("its console opens", lambda: opens(teacher, desktop))
        assert teacher.http.get(f"/desktops/{desktop}").json()["state"] == "running"
        assert emulator.is_running()
        assert [process.pid for process in emulators(desktop)] == [emulator.pid]
        with Serial(stack.home, desktop) as line:
            line.wait_for_shell()
        teacher.stop(desktop)
        assert not emulator.is_running()
        assert not overlay(stack.home, desktop).exists()
        another = teacher.start()
        teacher.stop(another)


def _is_back(stack: Stack, name: str, killed: int) -> bool:
    entry = stack.processes()[name]
    return entry["pid"] not in (None, killed) and entry["state"] == "ready"


def test_a_killed_supervisor_costs_no_desktop(tmp_path: Path, images: ImageStore) -> None:
    """All processes die with it, the guests do not; the next `up` finds them. Its home is too deep for a socket."""
    stack = Stack(tmp_path / ("deep-" * 20) / "home").start()
    try:
        with person(stack.url, "teacher", stack.password("teacher")) as teacher:
            desktop = teacher.start()
            (emulator,) = emulators(desktop)
            children = [psutil.Process(entry["pid"]) for entry in stack.processes().values()]
            stack.kill()
            assert psutil.wait_procs(children, timeout=10)[1] == []
            assert emulator.is_running()
            stack.start()
            stack.wait_until("its console opens", lambda: opens(teacher, desktop))
            assert [process.pid for process in emulators(desktop)] == [emulator.pid]
            teacher.stop(desktop)
            assert not emulator.is_running()
    finally:
        stack.stop()


def test_up_stops_what_runs_and_leaves_nothing(tmp_path: Path, images: ImageStore) -> None:
    stack = Stack(tmp_path / "home").start()
    teacher = Person(stack.url, "teacher", stack.password("teacher"))
    desktop = teacher.start()
    (emulator,) = emulators(desktop)
    teacher.close()
    stack.stop()
    assert not emulator.is_running()
    stack.start()
    try:
        with person(stack.url, "teacher", stack.password("teacher")) as teacher:
            assert teacher.http.get("/desktops").json()["items"] == []
            teacher.start()
    finally:
        stack.stop()
