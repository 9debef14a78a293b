"""Live events: one listener per process, woken by bells, that tells every open stream what concerns its user.

Nothing is polled. A ring makes the feed read what changed since the version it
has, once for all; each stream then gets *which* things changed and takes them from what
the feed has read last (`pupitre.portal.live.live_cache`) when it sends, so that a late stream
sends the newest state and never an old one. A stream that does not keep up has its
queue emptied and begins anew with all there is.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from pupitre.domain.command import Command
from pupitre.domain.host import Host
from pupitre.domain.image import CopyState
from pupitre.domain.people.access import User, may_manage_hosts
from pupitre.domain.status import ClusterLink
from pupitre.errors import Unavailable
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.live.live_cache import Latest, Watched
from pupitre.runtime.batch import Batch
from pupitre.runtime.workers import until_available
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.sql.dialect import Listening
from pupitre.store.status import CHANGED, Status
from pupitre.timings import GATHER_EVENTS, LINKS_FRESH

MANY, BUSY, STREAM_GATHER = 5, 0.5, 0.015
"""After so many changes at once, for how long each stream gathers its own news, and for how long (s)."""


@dataclass(frozen=True, slots=True)
class Versions:
    """How far commands and status have been told; written as the id of an event."""

    commands: int
    status: int

    def __str__(self) -> str:
        return f"{self.commands}.{self.status}"


@dataclass(slots=True)
class News:
    """What changed, by id; commands as they are now. ``resync``: too much was missed, look at everything."""

    versions: Versions
    commands: dict[str, Command] = field(default_factory=dict)
    desktops: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    links: bool = False
    resync: bool = False

    def __bool__(self) -> bool:
        return bool(self.commands or self.desktops or self.images or self.hosts or self.links or self.resync)

    def add(self, other: "News") -> None:
        self.versions = other.versions
        self.commands |= other.commands
        self.desktops |= other.desktops
        self.images |= other.images
        self.hosts |= other.hosts
        self.links |= other.links
        self.resync |= other.resync


class Stream:
    """What one open connection has yet to hear. Its news are folded together: at most one of each thing waits."""

    LIMIT = 256

    def __init__(self, user: User, versions: Versions, *, pause: Callable[[], float] = lambda: 0.0) -> None:
        """``pause`` is for how long news gather just now before they are told (s)."""
        self.user = user
        self._pause = pause
        self._waiting = News(versions)
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, news: News) -> bool:
        """False when that was too much, and the stream begins anew."""
        if not news:
            return True
        self._waiting.add(news)
        size = len(self._waiting.commands) + len(self._waiting.desktops)
        fits = size + len(self._waiting.images) + len(self._waiting.hosts) <= self.LIMIT
        if not fits:
            self._waiting = News(news.versions, resync=True)
        self._wake.set()
        return fits

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def next(self) -> News | None:
        """All that is new since the last call, as soon as there is any; None when the portal stops."""
        await self._wake.wait()
        if pause := self._pause():
            await asyncio.sleep(pause)
        if self._ended:
            return None
        self._wake.clear()
        news, self._waiting = self._waiting, News(self._waiting.versions)
        return news


class Feed:
    """The one listener of a process."""

    def __init__(self, commands: Commands, status: Status, metrics: Metrics, *, confirm_every: float = 5) -> None:
        self._commands = commands
        self._status = status
        self._metrics = metrics
        self._confirm_every = confirm_every
        self._streams: set[Stream] = set()
        self._versions = Versions(0, 0)
        self._latest = Latest()
        self._links_read = 0.0
        # What is read later is written later: no old row comes after a newer one.
        self._turn = asyncio.Lock()
        self._looks: Batch[str, Watched] = Batch(self._look)
        self._ready_images: frozenset[str] = frozenset()
        self._busy_until = 0.0
        self._closed = False

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Feed"]:
        """Never waits for a database: until both answer there are no news."""
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

        await until_available(begin)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(answered, self._tell_commands))
            tasks.create_task(self._follow(changed, self._tell_status))
            tasks.create_task(self._confirm())

    async def _begin(self) -> None:
        async with self._turn:
            self._versions = Versions(await self._commands.version(), await self._status.version())
            self._latest.forget()  # what was read while the other database was away
            self._latest.begin(await self._status.hosts(), await self._status.links())
            self._ready_images = await self._read_ready_images()
            for stream in self._streams:
                stream.put(News(self._versions, resync=True))

    @asynccontextmanager
    async def stream(self, user: User) -> AsyncIterator[Stream]:
        """A stream of what concerns ``user`` from now on."""
        stream = Stream(user, self._versions, pause=self._stream_pause)
        if self._closed:
            stream.end()
        self._streams.add(stream)
        self._metrics.listeners.set(len(self._streams))
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._latest.forget()
            self._metrics.listeners.set(len(self._streams))

    @property
    def versions(self) -> Versions:
        return self._versions

    @property
    def ready_images(self) -> frozenset[str]:
        """Ids of images that were ready at the last news: a desktop can be started from them without a further look."""
        return self._ready_images

    async def desktop(self, desktop_id: str) -> Watched:
        """A desktop and its commands as last read. Raises `Unavailable`."""
        return self._latest.desktop(desktop_id) or await self._looks.do(desktop_id)

    async def links(self) -> list[ClusterLink]:
        """The links to clusters as of a moment ago: every change of one wakes us. Raises `Unavailable`."""
        if time.monotonic() - self._links_read > LINKS_FRESH:
            self._latest.links = await self._status.links()
            self._links_read = time.monotonic()
        return self._latest.links

    @property
    def hosts(self) -> Mapping[str, Host]:
        """Every host by name, as last read."""
        return self._latest.hosts

    async def _look(self, ids: Sequence[str]) -> list[Watched]:
        async with self._turn:
            rows = {row.id: row for row in await self._status.desktops(set(ids))}
            commands = await self._commands.of_desktops(set(ids))
            found = {id: Watched(rows.get(id), {one.id: one for one in commands.get(id, ())}) for id in ids}
            if self._streams:  # else nobody reads what changes
                for id, watched in found.items():
                    self._latest.keep(id, watched)
        return [found[id] for id in ids]

    def close(self) -> None:
        """End every stream, so that a server that waits for open answers can stop."""
        self._closed = True
        for stream in self._streams:
            stream.end()

    async def _follow(self, bell: Listening, tell: Callable[[], Awaitable[int]]) -> None:
        """Tell what is new at every ring; many changes at once make the next ones wait for each other."""

        async def in_turn() -> int:
            async with self._turn:
                return await tell()

        while True:
            await bell.heard()
            told = await until_available(in_turn)
            if told > 1:
                await asyncio.sleep(GATHER_EVENTS)
            if told >= MANY:
                self._busy_until = time.monotonic() + BUSY

    def _stream_pause(self) -> float:
        return STREAM_GATHER if time.monotonic() < self._busy_until else 0.0

    async def _confirm(self) -> None:
        """Tell that rows which have not changed still hold: pages mark what nobody has confirmed for too long.

        When the cluster was heard is written too often to wake anyone; it is read now and then, once for all streams.
        """
        told: list[int] = []
        while True:
            await asyncio.sleep(self._confirm_every)
            try:
                self._links_read = 0.0
                heard = [link.heard for link in await self.links()]
            except Unavailable:
                continue  # pages count on from what they have
            if heard != told:
                told = heard
                for stream in self._streams:
                    stream.put(News(self._versions, links=True))

    async def _tell_commands(self) -> int:
        """Give each stream its part of what is new; how much there was."""
        if not self._streams:
            version = await self._commands.version()
            if not self._streams:  # still nobody to tell
                self._versions = replace(self._versions, commands=version)
                return 0
        changes = await self._commands.changes(self._versions.commands)
        if changes:
            self._versions = replace(self._versions, commands=changes[-1].version)
        self._latest.commands_changed(change.command for change in changes)
        by_user: dict[str, News] = defaultdict(lambda: News(self._versions))
        for change in changes:
            news = by_user[change.command.user]
            news.commands[change.command.id] = change.command
            if change.command.desktop:
                news.desktops.add(change.command.desktop)
        for stream in self._streams:
            self._put(stream, by_user[stream.user.id])
        return len(changes)

    async def _tell_status(self) -> int:
        status = await self._status.changes(self._versions.status)
        self._versions = replace(self._versions, status=status.version)
        if status.rows.copies:
            self._ready_images = await self._read_ready_images()
        by_user: dict[str, set[str]] = defaultdict(set)
        for desktop in status.rows.desktops:
            by_user[desktop.owner].add(desktop.id)
        images = {copy.image.id for copy in status.rows.copies}
        hosts = {host.name for host in status.rows.hosts}
        before = self._latest.hosts.keys()
        self._latest.status_changed(status.rows, status.host_names)
        hosts |= before - self._latest.hosts.keys()
        if status.links:
            self._links_read = 0.0
        for stream in self._streams:
            news = News(self._versions, images=set(images), links=bool(status.links))
            news.desktops |= by_user[stream.user.id]
            if may_manage_hosts(stream.user):
                news.hosts |= hosts
            self._put(stream, news)
        return len(status.rows.desktops) + len(hosts) + len(images)

    def _put(self, stream: Stream, news: News) -> None:
        if not stream.put(news):
            self._metrics.resyncs.inc()

    async def _read_ready_images(self) -> frozenset[str]:
        return frozenset(image.id for image in await self._status.images() if image.state is CopyState.READY)
