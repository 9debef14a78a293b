"""Starts children in order, restarts one that dies, stops all in the reverse order.

It waits on events only: a child's end, its word that it is ready, a pause that is
over, a signal. What it does next is read from `life`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pupitre.errors import SetupError
from pupitre.runtime.workers import ungrouped, wait_or_timeout
from pupitre.timings import CHILD_HURRIED
from pupitre.up.processes.child import Child, ChildSpec, describe_exit
from pupitre.up.processes.lifecycle import CHILD_LIFE, ChildEvent, ChildLifecycle, ChildState
from pupitre.up.processes.stream import LogStream

SETUP_FAULT = 2
"""Exit code of a Pupitre process that lacks something which only a person can mend."""


class ChildSupervisor:
    """Keeps one child alive. ``on_change`` hears of every change of its life."""

    def __init__(
        self,
        spec: ChildSpec,
        *,
        sockets: Path,
        stream: LogStream,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.life = ChildLifecycle()
        self.child: Child | None = None
        self._sockets = sockets
        self._stream = stream
        self._on_change = on_change
        self._clock = clock
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the child is ready, or rests. Raises `SetupError` when it cannot become so."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._task.done():
            await self._task  # raises why, unless it was told to stop

    async def stop(self) -> None:
        """Return when the child is down."""
        self._stopping.set()
        if self._task:
            await asyncio.wait({self._task})

    def wake(self) -> None:
        """Start it if it rests; otherwise nothing."""
        if self.life.state is ChildState.RESTING:
            self._woken.set()

    def hurry(self) -> None:
        """Do not give it the time it may have."""
        self._hurry.set()

    async def _keep(self) -> None:
        if self.spec.rest_mark and self.spec.rest_mark.exists():
            self._say(f"{self.spec.name} was shut down; it rests until it is booted up")
            self._rest()
        while not self._stopping.is_set():
            if self.life.state is ChildState.RESTING and not await self._is_woken():
                break
            self._take(ChildEvent.START)
            child = await Child.start(
                self.spec, sockets=self._sockets, stream=self._stream, on_ready=self._became_ready
            )
            self.child = child
            self._on_change()
            code = await self._until_end(child)
            lived = self._clock() - self.life.started
            self.child = None
            if code == 0 and child.is_done and self.life.state is not ChildState.STOPPING:
                self._say(f"{self.spec.name} has done what it was told, and is not started again by itself")
                self._rest()
                continue
            self._take(ChildEvent.EXIT)
            if self.life.state is ChildState.DOWN:
                return
            if self.life.is_hopeless or (code == SETUP_FAULT and not self.life.was_ready):
                self._take(ChildEvent.STOP)
                raise SetupError(
                    f"{self.spec.name} ended with {describe_exit(code)} before it was ready.",
                    "What it said is in the lines above; `pupitre doctor` checks this machine.",
                )
            self._say(
                f"{self.spec.name} ended with {describe_exit(code)} after {lived:.0f} s;"
                f" starting it again in {self.life.pause:g} s"
            )
            await self._pause(self.life.pause)
        self._take(ChildEvent.STOP)

    def _rest(self) -> None:
        if self.spec.rest_mark:
            self.spec.rest_mark.touch()
        self._woken.clear()
        self._take(ChildEvent.FINISH)
        self._ready.set()

    async def _is_woken(self) -> bool:
        """Wait for it; False when it is to stop instead."""
        woken, stopping = asyncio.create_task(self._woken.wait()), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({woken, stopping}, return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()
        stopping.cancel()
        if self._stopping.is_set():
            return False
        if self.spec.rest_mark:
            self.spec.rest_mark.unlink(missing_ok=True)
        self._say(f"{self.spec.name} is woken")
        return True

    async def _until_end(self, child: Child) -> int:
        ended = asyncio.create_task(child.ended())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stopping.is_set() and not ended.done():
            self._take(ChildEvent.STOP)
            await self._stop_child(child)
        return await ended

    async def _stop_child(self, child: Child) -> None:
        stopped = asyncio.create_task(child.stop(self.spec.stop_within))
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({stopped, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopped.done():
            await asyncio.wait({stopped}, timeout=CHILD_HURRIED)
            if not stopped.done():
                child.kill()
        if not await stopped:
            self._say(f"{self.spec.name} did not stop in time and was killed")

    async def _pause(self, seconds: float) -> None:
        await wait_or_timeout(self._stopping, seconds)

    def _became_ready(self) -> None:
        if CHILD_LIFE.allows(self.life.state, ChildEvent.READY):
            self._take(ChildEvent.READY)
        self._ready.set()

    def _take(self, event: ChildEvent) -> None:
        before = self.life
        self.life = before.after(event, self._clock())
        if event is ChildEvent.READY and before.restarts and before.state is ChildState.STARTING:
            self._say(f"{self.spec.name} is back")
        self._on_change()

    def _say(self, text: str) -> None:
        self._stream.line("up", text.encode())


class Supervisor:
    """All keepers, by stage: those of one stage start together, once the stage before is ready."""

    def __init__(
        self,
        stages: Sequence[Sequence[ChildSpec]],
        *,
        sockets: Path,
        stream: LogStream,
        on_change: Callable[[], None],
    ) -> None:
        self._stages = [
            [ChildSupervisor(spec, sockets=sockets, stream=stream, on_change=on_change) for spec in stage]
            for stage in stages
        ]

    @property
    def supervisors(self) -> list[ChildSupervisor]:
        return [supervisor for stage in self._stages for supervisor in stage]

    async def start(self, on_ready: Callable[[str, float], None]) -> None:
        """``on_ready`` hears each child's name and the seconds it took. Raises `SetupError`."""
        for stage in self._stages:
            with ungrouped(SetupError):
                async with asyncio.TaskGroup() as starting:
                    for supervisor in stage:
                        starting.create_task(self._start(supervisor, on_ready))

    async def _start(self, supervisor: ChildSupervisor, on_ready: Callable[[str, float], None]) -> None:
        begun = time.monotonic()
        await supervisor.start()
        on_ready(supervisor.spec.name, time.monotonic() - begun)

    async def stop(self) -> None:
        """One after the other, the last one first."""
        for supervisor in reversed(self.supervisors):
            await supervisor.stop()

    def wake(self, name: str) -> None:
        """Start the child of this name if it rests."""
        for supervisor in self.supervisors:
            if supervisor.spec.name == name:
                supervisor.wake()

    def reload(self, name: str) -> None:
        """Have the child of this name read its files again, if it runs."""
        for supervisor in self.supervisors:
            if supervisor.spec.name == name and supervisor.child:
                supervisor.child.reload()

    def hurry(self) -> None:
        for supervisor in self.supervisors:
            supervisor.hurry()
