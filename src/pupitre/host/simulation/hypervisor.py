"""A `Hypervisor` in memory, for tests and for load: thousands of starts a second, no guest.

It misbehaves by name: ``prompt`` does not, ``slow`` takes its time, ``never_boots`` is still
starting when the caller gives up, ``dies_at_start`` fails, ``deaf`` does not hear its power
button. A test that passes ``delay=None`` decides with `step` when a start goes on, and with `crash` when a guest ends.
With a ``guest_log`` its guests outlive the process, as real ones do; without, they are lost with it.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pupitre.domain.host import HostFacts
from pupitre.errors import HypervisorError, NoSuchDomain, SetupError
from pupitre.host.hypervisor.domain_xml import desktop_id
from pupitre.host.hypervisor.port import Guest, GuestState, SeenGuest
from pupitre.host.simulation.guest_log import SimulatedGuestLog, guest_log_path
from pupitre.host.simulation.screen import Screen
from pupitre.timings import SIMULATED_SLOW_START


class Behaviour(StrEnum):
    PROMPT = "prompt"
    SLOW = "slow"
    NEVER_BOOTS = "never_boots"
    DIES_AT_START = "dies_at_start"
    DEAF = "deaf"


@dataclass(slots=True)
class _Simulated:
    desktop: str
    boot: int
    screen: Screen
    state: GuestState = GuestState.STARTING
    go: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedHypervisor:
    """See `pupitre.host.hypervisor.port.Hypervisor`. ``delay`` is that of ``slow``; None waits for `step`."""

    def __init__(
        self,
        behaviour: Behaviour,
        serials: Path,
        delay: float | None = SIMULATED_SLOW_START,
        memory_mib: int = 65536,
        guest_log: SimulatedGuestLog | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.pressed: dict[str, int] = {}
        """How often each guest's power button was pressed."""
        self._guest_log = guest_log
        self._serials = serials
        self._delay = delay
        self._memory_mib = memory_mib
        self._guests: dict[str, _Simulated] = {}
        self._changes: asyncio.Queue[SeenGuest | None] = asyncio.Queue()
        self._viewers: set[asyncio.Task[None]] = set()
        self._lines: dict[str, asyncio.Server] = {}

    @staticmethod
    def named(name: str, serials: Path, memory_mib: int | None = None) -> "SimulatedHypervisor":
        """Hypervisor of a process, with a guest log beside ``serials``; ``slow:0.5`` says how slow, in seconds.

        Raises `SetupError` for an unknown behaviour.
        """
        word, _, seconds = name.partition(":")
        try:
            behaviour, delay = Behaviour(word), float(seconds or SIMULATED_SLOW_START)
        except ValueError:
            raise SetupError(
                f"There is no simulated hypervisor {name!r}.", f"Choose one of: {', '.join(Behaviour)}."
            ) from None
        guest_log = SimulatedGuestLog(guest_log_path(serials.parent))
        return SimulatedHypervisor(behaviour, serials, delay, memory_mib or 65536, guest_log)

    async def open(self) -> None:
        self._serials.mkdir(parents=True, exist_ok=True)
        for desktop, boot in (self._guest_log.running() if self._guest_log else {}).items():
            there = self._guests[desktop] = _Simulated(desktop, boot, Screen(desktop), GuestState.RUNNING)
            there.go.set()

    async def close(self) -> None:
        for viewer in self._viewers:
            viewer.cancel()
        await asyncio.gather(*self._viewers, return_exceptions=True)
        for desktop in list(self._lines):
            self._hang_up(desktop)
        self._changes.put_nowait(None)

    async def facts(self) -> HostFacts:
        return HostFacts(
            memory_mib=self._memory_mib,
            vcpus=os.cpu_count() or 1,
            disk_free_mib=1 << 20,
            hypervisor=f"simulated://{self.behaviour}",
            accelerator="simulated",
            version="simulated",
        )

    async def ensure_running(self, guest: Guest) -> None:
        there = self._guests.get(desktop_id(guest.desktop))
        if there and there.boot > guest.boot:
            raise HypervisorError(f"Boot {guest.boot} of this desktop was overtaken: boot {there.boot} runs already.")
        if there and there.boot < guest.boot:
            self._end(there, "The guest was stopped.")
            there = None
        if there is None:
            there = self._guests[guest.desktop] = _Simulated(guest.desktop, guest.boot, Screen(guest.desktop))
            self._begin(there)
        await there.go.wait()
        if self._guests.get(guest.desktop) is not there:
            raise HypervisorError("The hypervisor refused to start the guest: it ended while it started.")

    async def resume(self, desktop: str) -> None:
        """Nothing here waits for a disk."""

    async def ensure_gone(self, desktop: str) -> None:
        if there := self._guests.get(desktop):
            self._end(there, "The guest was stopped.")

    async def shut_down(self, desktop: str) -> None:
        there = self._running(desktop)
        self.pressed[desktop] = self.pressed.get(desktop, 0) + 1
        if self.behaviour is not Behaviour.DEAF:
            self._end(there, "The guest shut itself down.", orderly=True)

    async def guests(self) -> dict[str, SeenGuest]:
        return {desktop: SeenGuest(desktop, there.boot, there.state) for desktop, there in self._guests.items()}

    async def changes(self) -> AsyncIterator[SeenGuest]:
        while (change := await self._changes.get()) is not None:
            yield change

    async def console(self, desktop: str) -> socket.socket:
        there = self._running(desktop)
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        viewer = asyncio.create_task(there.screen.serve(ours))
        self._viewers.add(viewer)
        viewer.add_done_callback(self._viewers.discard)
        return theirs

    async def screenshot(self, desktop: str) -> bytes:
        return self._running(desktop).screen.png()

    async def serial(self, desktop: str) -> Path:
        """A line that sends back what it is sent."""
        self._running(desktop)
        path = self._serials / desktop
        if desktop not in self._lines:
            self._lines[desktop] = await asyncio.start_unix_server(self._echo, path)
        return path

    # -- what only a test calls

    def step(self) -> bool:
        """Let the oldest waiting start go on, whatever the behaviour. False if none waits."""
        for there in self._guests.values():
            if there.state is GuestState.STARTING:
                self._run(there)
                return True
        return False

    def crash(self, desktop: str, reason: str = "The guest crashed.") -> None:
        """End a guest from inside."""
        self._end(self._running(desktop), reason)

    # -- how it goes

    def _begin(self, there: _Simulated) -> None:
        if self.behaviour in {Behaviour.PROMPT, Behaviour.DEAF}:
            self._run(there)
        elif self.behaviour is Behaviour.DIES_AT_START:
            self._guests.pop(there.desktop)
            there.go.set()
        elif self.behaviour is Behaviour.SLOW and self._delay is not None:
            asyncio.get_running_loop().call_later(self._delay, self._run, there)

    def _run(self, there: _Simulated) -> None:
        if self._guests.get(there.desktop) is there and there.state is GuestState.STARTING:
            try:
                if self._guest_log:
                    self._guest_log.write("run", there.desktop, there.boot)
            except OSError:  # as QEMU on a full disk: it does not come to be, and who waits for it is told
                self._guests.pop(there.desktop)
                there.go.set()
                return
            there.state = GuestState.RUNNING
            there.go.set()
            self._tell(there, GuestState.RUNNING)

    def _end(self, there: _Simulated, reason: str, *, orderly: bool = False) -> None:
        self._guests.pop(there.desktop)
        if self._guest_log and there.state is GuestState.RUNNING:
            self._guest_log.write("end", there.desktop, there.boot)
        there.go.set()
        self._hang_up(there.desktop)
        self._tell(there, GuestState.STOPPED, reason, orderly)

    def _tell(self, there: _Simulated, state: GuestState, reason: str | None = None, orderly: bool = False) -> None:
        self._changes.put_nowait(SeenGuest(there.desktop, there.boot, state, reason, orderly))

    def _running(self, desktop: str) -> _Simulated:
        there = self._guests.get(desktop)
        if there is None or there.state is not GuestState.RUNNING:
            raise NoSuchDomain("This desktop does not run on this host.")
        return there

    def _hang_up(self, desktop: str) -> None:
        if line := self._lines.pop(desktop, None):
            line.close()
            (self._serials / desktop).unlink(missing_ok=True)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._viewers.add(task)
            task.add_done_callback(self._viewers.discard)
        try:
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # whoever listened has left
        finally:
            writer.close()
