"""Change feed: the one listener of a process, which tells every open stream what changed for its user.

Nothing is polled. A notification makes the feed read what changed since the version it has, once for all;
each stream then gets *which* things changed and takes them as they are now, from the status mirror and the
watched commands, when it sends: a late stream sends the newest state and never an old one. A stream that
does not keep up has its changes dropped and begins anew with all there is.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pupitre.domain.command import Command
from pupitre.domain.people.access import User, may_manage_hosts
from pupitre.errors import Unavailable
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.live.status_mirror import MirrorChanges, StatusMirror
from pupitre.portal.live.watched_commands import WatchedCommands
from pupitre.runtime.batch import Batch
from pupitre.runtime.workers import retry_until_available
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.sql.dialect import Listening
from pupitre.store.status import CHANGED
from pupitre.timings import EVENTS_BUSY, GATHER_EVENTS, GATHER_STREAM

MANY = 5
"""Changes at once after which streams gather theirs."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of commands and status that have been told; written as the id of an event."""

    commands: int
    status: int

    def __str__(self) -> str:
        return f"{self.commands}.{self.status}"


@dataclass(slots=True)
class Changes:
    """Changes by id; commands as they are now. ``resync``: too much was missed, look at everything."""

    versions: Versions
    commands: dict[str, Command] = field(default_factory=dict)
    desktops: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    links: bool = False
    resync: bool = False

    def __bool__(self) -> bool:
        return bool(self.commands or self.desktops or self.images or self.hosts or self.links or self.resync)

    def add(self, other: "Changes") -> None:
        self.versions = other.versions
        self.commands |= other.commands
        self.desktops |= other.desktops
        self.images |= other.images
        self.hosts |= other.hosts
        self.links |= other.links
        self.resync |= other.resync


class Stream:
    """Changes that one open connection has yet to be told. They are merged: at most one of each thing waits."""

    LIMIT = 256

    def __init__(self, user: User, versions: Versions, *, pause: Callable[[], float] = lambda: 0.0) -> None:
        """``pause`` is for how long changes gather just now before they are told (s)."""
        self.user = user
        self._pause = pause
        self._waiting = Changes(versions)
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, changes: Changes) -> bool:
        """False when that was too much, and the stream begins anew."""
        if not changes:
            return True
        self._waiting.add(changes)
        size = len(self._waiting.commands) + len(self._waiting.desktops)
        fits = size + len(self._waiting.images) + len(self._waiting.hosts) <= self.LIMIT
        if not fits:
            self._waiting = Changes(changes.versions, resync=True)
        self._wake.set()
        return fits

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def next(self) -> Changes | None:
        """All that is new since the last call, as soon as there is any; None when the portal stops."""
        await self._wake.wait()
        if pause := self._pause():
            await asyncio.sleep(pause)
        if self._ended:
            return None
        self._wake.clear()
        changes, self._waiting = self._waiting, Changes(self._waiting.versions)
        return changes


class ChangeFeed:
    """The one listener of a process."""

    def __init__(self, commands: Commands, status: StatusMirror, metrics: Metrics, *, confirm_every: float = 5) -> None:
        self._commands = commands
        self._status = status
        self._metrics = metrics
        self._confirm_every = confirm_every
        self._streams: set[Stream] = set()
        self._version = 0
        self._watched = WatchedCommands()
        # What is read later is written later: no old command comes after a newer one.
        self._turn = asyncio.Lock()
        self._reads: Batch[str, list[Command]] = Batch(self._read_commands)
        status.on_changes = self._tell_status
        self._busy_until = 0.0
        self._closed = False

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["ChangeFeed"]:
        """Never waits for a database: until both answer nothing changes."""
        commands, status = self._commands.database, self._status.database
        async with (
            commands.listen(ANSWERED) as answered,
            status.listen(CHANGED) as changed,
            asyncio.TaskGroup() as tasks,
        ):
            tried = asyncio.Event()
            worker = tasks.create_task(self._work(answered, changed, tried))
            await tried.wait()
            try:
                yield self
            finally:
                self.close()
                worker.cancel()

    async def _work(self, answered: Listening, changed: Listening, tried: asyncio.Event) -> None:
        """``tried`` is set once it was tried to begin, whatever came of it."""

        async def begin() -> None:
            try:
                await self._begin()
            finally:
                tried.set()

        await retry_until_available(begin)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(answered, self._tell_commands))
            tasks.create_task(self._follow(changed, self._status.refresh))
            tasks.create_task(self._confirm())

    async def _begin(self) -> None:
        async with self._turn:
            self._version = await self._commands.version()
            self._watched.clear()  # what was read while the other database was away
        await self._status.refresh()
        self._resync()

    def _resync(self) -> None:
        for stream in self._streams:
            stream.put(Changes(self.versions, resync=True))

    @asynccontextmanager
    async def stream(self, user: User) -> AsyncIterator[Stream]:
        """A stream of what concerns ``user`` from now on."""
        stream = Stream(user, self.versions, pause=self._stream_pause)
        if self._closed:
            stream.end()
        self._streams.add(stream)
        self._metrics.listeners.set(len(self._streams))
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._watched.clear()
            self._metrics.listeners.set(len(self._streams))

    @property
    def versions(self) -> Versions:
        """Versions up to which streams have been told."""
        return Versions(self._version, self._status.version)

    async def commands_of(self, desktop_id: str) -> list[Command]:
        """The desktop's commands as last told, oldest first. Raises `Unavailable`."""
        found = self._watched.get(desktop_id)
        return await self._reads.do(desktop_id) if found is None else found

    async def _read_commands(self, ids: Sequence[str]) -> list[list[Command]]:
        async with self._turn:
            found = await self._commands.of_desktops(set(ids))
            if self._streams:  # else nobody reads what changes
                for id in ids:
                    self._watched.keep(id, found.get(id, ()))
        return [found.get(id, []) for id in ids]

    def close(self) -> None:
        """End every stream, so that a server that waits for open answers can stop."""
        self._closed = True
        for stream in self._streams:
            stream.end()

    async def _follow(self, listening: Listening, tell: Callable[[], Awaitable[int]]) -> None:
        """Tell what is new at every notification; many changes at once make the next ones wait for each other."""
        while True:
            await listening.wait()
            told = await retry_until_available(tell)
            if told > 1:
                await asyncio.sleep(GATHER_EVENTS)
            if told >= MANY:
                self._busy_until = time.monotonic() + EVENTS_BUSY

    def _stream_pause(self) -> float:
        return GATHER_STREAM if time.monotonic() < self._busy_until else 0.0

    async def _confirm(self) -> None:
        """Tell that rows which have not changed still hold: pages mark what nobody has confirmed for too long.

        When the cluster was heard is written too often to wake anyone; it is read now and then, once for all streams.
        """
        told: list[int] = []
        while True:
            await asyncio.sleep(self._confirm_every)
            try:
                await self._status.refresh()
                if await self._commands.version() < self._version:  # the database is another one
                    await self._begin()
            except Unavailable:
                continue  # pages count on from what they have
            heard = [link.heard for link in self._status.links]
            if heard != told:
                told = heard
                for stream in self._streams:
                    stream.put(Changes(self.versions, links=True))

    async def _tell_commands(self) -> int:
        """Give each stream its part of what is new; how much there was."""
        async with self._turn:
            if not self._streams:
                version = await self._commands.version()
                if not self._streams:  # still nobody to tell
                    self._version = version
                    return 0
            changes = await self._commands.changes(self._version)
            if changes:
                self._version = changes[-1].version
            self._watched.change(change.command for change in changes)
            by_user: dict[str, Changes] = defaultdict(lambda: Changes(self.versions))
            for change in changes:
                told = by_user[change.command.user]
                told.commands[change.command.id] = change.command
                if change.command.desktop:
                    told.desktops.add(change.command.desktop)
            for stream in self._streams:
                self._put(stream, by_user[stream.user.id])
        return len(changes)

    def _tell_status(self, taken: MirrorChanges) -> None:
        """Give each stream its part of what the mirror has taken."""
        if taken.reloaded:
            self._resync()
            return
        by_user: dict[str, set[str]] = defaultdict(set)
        for desktop in taken.desktops:
            by_user[desktop.owner].add(desktop.id)
        for stream in self._streams:
            changes = Changes(self.versions, images=set(taken.images), links=taken.links)
            changes.desktops |= by_user[stream.user.id]
            if may_manage_hosts(stream.user):
                changes.hosts |= taken.hosts
            self._put(stream, changes)

    def _put(self, stream: Stream, changes: Changes) -> None:
        if not stream.put(changes):
            self._metrics.resyncs.inc()
