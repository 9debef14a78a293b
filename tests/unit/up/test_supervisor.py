"""The supervisor on real processes: order, restart, stop, lines, and a child that outlives nobody."""

import asyncio
import io
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from pupitre.errors import SetupError
from pupitre.up.processes.child import ChildSpec, describe_exit
from pupitre.up.processes.lifecycle import ChildState
from pupitre.up.processes.notify import parse
from pupitre.up.processes.stream import MAX_LINE, Lines, LogStream
from pupitre.up.processes.supervisor import ChildSupervisor, Supervisor

pytestmark = pytest.mark.anyio

READY = """
import os, socket, signal, sys
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
"""
GOOD = READY + "print('hello', flush=True); say('STATUS=ops http://127.0.0.1:1\\nREADY=1'); signal.pause()"
STUBBORN = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('READY=1')\nwhile True: signal.pause()"
DONE = (
    READY
    + """
signal.signal(signal.SIGUSR1, lambda *_: (say('STATUS=done'), sys.exit(0)))
say('READY=1')
while True: signal.pause()
"""
)
LIMIT = 20.0


def spec(name: str, code: str, **more: float) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", code), **more)  # type: ignore[arg-type]


class Changes:
    """Every change of a life wakes whoever waits for a condition."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def __call__(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def keeping(path: Path, child: ChildSpec) -> AsyncIterator[tuple[ChildSupervisor, Changes, io.BytesIO]]:
    out, changes = io.BytesIO(), Changes()
    supervisor = ChildSupervisor(child, sockets=path, stream=LogStream(out, colours=False), on_change=changes)
    try:
        yield supervisor, changes, out
    finally:
        supervisor.hurry()
        await supervisor.stop()
        assert not list(path.iterdir()), "its notify socket is left"


async def test_a_child_is_ready_when_it_says_so_and_gone_when_told(tmp_path: Path) -> None:
    async with keeping(tmp_path, spec("good", GOOD)) as (supervisor, _, out):
        await supervisor.start()
        assert supervisor.life.state.value == "ready"
        assert supervisor.child
        assert supervisor.child.ops == "http://127.0.0.1:1"
        process = psutil.Process(supervisor.child.pid)
        await supervisor.stop()
        assert not process.is_running()
        assert supervisor.life.state.value == "down"
    assert out.getvalue() == "good     │ hello\n".encode()


async def test_a_killed_child_is_started_again_and_that_is_said(tmp_path: Path) -> None:
    async with keeping(tmp_path, spec("good", GOOD)) as (supervisor, changes, out):
        await supervisor.start()
        assert supervisor.child
        os.kill(supervisor.child.pid, signal.SIGKILL)
        await changes.until(lambda: supervisor.life.restarts == 1 and supervisor.life.state is ChildState.READY)
    said = out.getvalue().decode()
    assert "good ended with SIGKILL after 0 s; starting it again in 0.5 s" in said
    assert "good is back" in said


async def test_a_child_that_never_becomes_ready_is_given_up(tmp_path: Path) -> None:
    async with keeping(tmp_path, spec("bad", "raise SystemExit(3)")) as (supervisor, _, _out):
        with pytest.raises(SetupError, match="bad ended with exit code 3 before it was ready"):
            async with asyncio.timeout(LIMIT):
                await supervisor.start()


async def test_what_only_a_person_can_mend_is_not_tried_again(tmp_path: Path) -> None:
    async with keeping(tmp_path, spec("bad", "raise SystemExit(2)")) as (supervisor, _, _out):
        with pytest.raises(SetupError, match="exit code 2"):
            await supervisor.start()
        assert supervisor.life.failures == 1


async def test_child_that_is_done_rests_until_woken(tmp_path: Path) -> None:
    """A child that has done what it was told rests until it is woken."""
    sockets, mark = tmp_path / "sockets", tmp_path / "off"
    sockets.mkdir()
    told = ChildSpec("told", (sys.executable, "-c", DONE), rest_mark=mark)
    async with keeping(sockets, told) as (supervisor, changes, out):
        await supervisor.start()
        assert supervisor.child
        os.kill(supervisor.child.pid, signal.SIGUSR1)
        await changes.until(lambda: supervisor.life.state is ChildState.RESTING)
        assert mark.exists()
        assert supervisor.life.restarts == 0
        supervisor.wake()
        await changes.until(lambda: supervisor.life.state is ChildState.READY)
        assert not mark.exists()
        os.kill(supervisor.child.pid, signal.SIGUSR1)
        await changes.until(lambda: supervisor.life.state is ChildState.RESTING)
    said = out.getvalue().decode()
    assert "told has done what it was told, and is not started again by itself" in said
    assert "told is woken" in said

    async with keeping(sockets, told) as (supervisor, changes, _out):  # the next `up`
        await supervisor.start()
        assert (supervisor.life.state, supervisor.child) == (ChildState.RESTING, None)
        supervisor.wake()
        supervisor.wake()
        await changes.until(lambda: supervisor.life.state is ChildState.READY)


async def test_child_that_ends_with_code_0_is_restarted(tmp_path: Path) -> None:
    """A child that ends with code 0 for no reason is started again."""
    code = READY + "say('READY=1'); signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nwhile True: signal.pause()"
    async with keeping(tmp_path, spec("good", code)) as (supervisor, changes, _out):
        await supervisor.start()
        assert supervisor.child
        os.kill(supervisor.child.pid, signal.SIGTERM)
        await changes.until(lambda: supervisor.life.restarts == 1 and supervisor.life.state is ChildState.READY)


async def test_a_child_that_ignores_sigterm_is_killed_at_its_limit(tmp_path: Path) -> None:
    async with keeping(tmp_path, spec("stubborn", STUBBORN, stop_within=0.2)) as (supervisor, _, out):
        await supervisor.start()
        await supervisor.stop()
    assert "stubborn did not stop in time and was killed" in out.getvalue().decode()


async def test_somebody_in_a_hurry_does_not_wait_for_the_limit(tmp_path: Path) -> None:
    async with keeping(tmp_path, spec("stubborn", STUBBORN, stop_within=600)) as (supervisor, _, _out):
        await supervisor.start()
        stopping = asyncio.create_task(supervisor.stop())
        supervisor.hurry()
        async with asyncio.timeout(LIMIT):
            await stopping


async def test_stages_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    code = READY + (
        "\nname = sys.argv[1]\ndef end(*_):\n    open(sys.argv[2], 'a').write(name); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); say('READY=1'); signal.pause()"
    )
    specs = [ChildSpec(name, (sys.executable, "-c", code, name, str(ended))) for name in "abc"]
    sockets = tmp_path / "run"
    sockets.mkdir()
    stream = LogStream(io.BytesIO(), colours=False)
    supervisor = Supervisor([[specs[0]], specs[1:]], sockets=sockets, stream=stream, on_change=lambda: None)
    ready: list[str] = []
    await supervisor.start(lambda name, _seconds: ready.append(name))
    await supervisor.stop()
    assert ready[0] == "a"
    assert sorted(ready) == ["a", "b", "c"]
    assert ended.read_text() == "cba"


async def test_no_child_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    """The kernel ends it: there is nobody left to do so."""
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom pupitre.up.processes.child import Child, ChildSpec\n"
        "from pupitre.up.processes.stream import LogStream\n"
        "async def main():\n"
        "    child = await Child.start(ChildSpec('x', ('sleep', '600')), sockets=Path(sys.argv[1]),"
        " stream=LogStream(), on_ready=lambda: None)\n"
        "    print(child.pid, flush=True)\n    await child.ended()\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout
    child = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [child], LIMIT)
    assert gone


def test_lines_stay_whole() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed(b"o\r\n") == [b"two"]
    assert lines.feed(b"x" * (MAX_LINE + 1)) == [b"x" * (MAX_LINE + 1)]
    assert lines.feed(b"end") == []
    assert lines.end() == [b"end"]
    assert lines.end() == []


def test_a_terminal_that_went_away_stops_nobody() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as out:
        LogStream(out).line("web", b"anyone?")


def test_notifications_are_pairs_and_the_rest_is_left_out() -> None:
    assert parse(b"READY=1\nSTATUS=a=b\nnonsense\n=x") == [("READY", "1"), ("STATUS", "a=b")]


def test_an_end_is_described_in_words() -> None:
    assert [describe_exit(code) for code in (0, 3, -9, -200)] == ["exit code 0", "exit code 3", "SIGKILL", "signal 200"]
