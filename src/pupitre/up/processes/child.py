"""One child process: started, watched, its lines forwarded, stopped. No decisions here."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pupitre.errors import SetupError
from pupitre.runtime.timeouts import timeout
from pupitre.timings import CHILD_LAST_OUTPUT
from pupitre.up.processes.notify import Notifications
from pupitre.up.processes.stream import Lines, LogStream

DONE = "done"
"""As in `pupitre.net.ops`, which this small process does not import."""


HARMLESS = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"})


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Specification of a child. ``stop_within`` is in seconds; then the child is killed.

    A child is ready when it says ``READY=1`` (sd_notify), or, where ``ready_line`` is
    set, when a line of its output contains that. ``rest_mark`` is a file that is there
    while the child rests, so that it does not begin to run with the next `up` either.
    A child that is not ours has no use for our environment, where secrets may be: it
    ``inherits`` no more of it than `HARMLESS`.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_within: float = 10.0
    ready_line: bytes | None = None
    rest_mark: Path | None = None
    inherits: bool = True


class Child:
    """A running process. ``ended`` gives its exit code, or minus the signal that ended it."""

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.pid = process.pid
        self.status = ""
        self._process = process
        self._task: asyncio.Task[int] | None = None

    @classmethod
    async def start(cls, spec: ChildSpec, *, sockets: Path, stream: LogStream, on_ready: Callable[[], None]) -> "Child":
        """``status`` keeps the child's last word about itself (``STATUS=…``). Raises `SetupError`."""
        path = sockets / f"{spec.name}.notify"
        child: Child | None = None
        early: list[tuple[str, str]] = []  # said before we even know that it runs

        def heard(name: str, value: str) -> None:
            if child is None:
                early.append((name, value))
            elif name == "READY" and value == "1":
                on_ready()
            elif name == "STATUS":
                child.status = value

        notifications = Notifications(path, heard)
        notifications.__enter__()
        try:
            # The kernel ends the child when this process dies, however it dies; its own session
            # keeps the terminal's Ctrl-C away from it, so that the order of stopping is ours.
            inherited = {key: value for key, value in os.environ.items() if spec.inherits or key in HARMLESS}
            process = await asyncio.create_subprocess_exec(  # noqa: TID251 - no libvirt in this process
                "setpriv", "--pdeathsig", "KILL", "--", *spec.argv,
                env={**inherited, **spec.environment, "NOTIFY_SOCKET": notifications.address},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            notifications.__exit__()
            raise SetupError("The program setpriv is missing.", "Run: apt-get install util-linux") from error
        child = cls(spec, process)
        for name, value in early:
            heard(name, value)
        child._task = asyncio.create_task(child._watch(notifications, stream, on_ready), name=f"watch {spec.name}")
        return child

    async def _watch(self, notifications: Notifications, stream: LogStream, on_ready: Callable[[], None]) -> int:
        assert self._process.stdout
        lines = Lines()
        reading = asyncio.create_task(self._forward(self._process.stdout, lines, stream, on_ready))
        try:
            code = await self._process.wait()
            with contextlib.suppress(TimeoutError):
                async with timeout(CHILD_LAST_OUTPUT):
                    await reading
            return code
        finally:
            reading.cancel()
            for line in lines.end():
                stream.line(self.spec.name, line)
            notifications.__exit__()

    async def _forward(
        self, reader: asyncio.StreamReader, lines: Lines, stream: LogStream, on_ready: Callable[[], None]
    ) -> None:
        while data := await reader.read(1 << 16):
            for line in lines.feed(data):
                stream.line(self.spec.name, line)
                if self.spec.ready_line and self.spec.ready_line in line:
                    on_ready()

    @property
    def ops(self) -> str | None:
        """The Unix socket of its /healthz, /readyz and /metrics, once it has said so."""
        return self.status.removeprefix("ops ") if self.status.startswith("ops ") else None

    @property
    def is_done(self) -> bool:
        """Whether its last word was that it has done what it was told."""
        return self.status == DONE

    async def ended(self) -> int:
        assert self._task
        return await asyncio.shield(self._task)

    async def stop(self, within: float) -> bool:
        """Ask it to stop, insist after ``within`` seconds; True when asking was enough."""
        self._signal(signal.SIGTERM)
        try:
            async with timeout(within):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()
            return False
        return True

    def reload(self) -> None:
        """Have it read its files again, as many programs do on SIGHUP."""
        self._signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it and what it started in its session. Guests have sessions of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def describe_exit(code: int) -> str:
    """``exit code 3`` or ``SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
