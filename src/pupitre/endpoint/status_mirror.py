"""Status mirror: the status database follows the cluster, by full pages once, then by numbered changes.

A change that does not follow the last one seen, a mark beyond it, or another epoch
means that something was missed: then all pages are read again. Rows say how things
are, not what happened, so taking one twice does no harm. Whenever the mirror is known
to be whole, the time is written beside it, so that a reader knows how old it may be.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from prometheus_client import CollectorRegistry, Counter

from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.status import Position, Rows
from pupitre.errors import MessageError, NoAnswer
from pupitre.runtime.batch import Batch
from pupitre.runtime.clock import now_ms
from pupitre.store.status import SeenKeys, Status
from pupitre.timings import STATUS_CONFIRM_MS
from pupitre.wire.messages import Changed, GetPage, Page, StatusPosition

log = structlog.get_logger(__name__)

SECTIONS = ("hosts", "copies", "desktops")

Ask = Callable[[GetPage], Awaitable[Page]]
"""Asks the cluster for a page. Raises `NoAnswer` or `MessageError`."""


class StatusMirror:
    """``confirm_every`` in ms; see `STATUS_CONFIRM_MS`."""

    def __init__(
        self,
        cluster: str,
        status: Status,
        ask: Ask,
        *,
        confirm_every: int = STATUS_CONFIRM_MS,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._cluster = cluster
        self._status = status
        self._ask = ask
        self._confirm_every = confirm_every
        self._confirmed = 0
        self._position = Position()
        # How far each row was written ahead of the change that brings it.
        self._applied_early: dict[str, Position] = {}
        self._rows = Counter(
            "pupitre_status_rows", "Rows of the status database compared with the cluster's, and written",
            ["how"], registry=registry or CollectorRegistry(),
        )  # fmt: skip
        self._early_rows: Batch[tuple[Position, Rows], None] = Batch(self._apply_group_early)
        self._turn = asyncio.Lock()  # a change must not come between the pages and what they leave out

    async def open(self) -> None:
        self._position = await self._status.position(self._cluster)

    async def change(self, change: Changed) -> None:
        async with self._turn:
            here = self._position
            if change.epoch != here.epoch or change.after > here.sequence:
                await self._read_all()
            elif change.sequence > here.sequence:
                position = Position(change.epoch, change.sequence)
                if rows := self._without_applied(change.rows, position):
                    await self._apply(rows, position)
                self._advance(position)
                await self._confirm()

    async def mark(self, mark: StatusPosition) -> None:
        async with self._turn:
            if mark.epoch != self._position.epoch or mark.sequence > self._position.sequence:
                await self._read_all()
            elif mark.sequence == self._position.sequence:
                await self._confirm()

    async def apply_early(self, rows: Rows, at: Position) -> None:
        """Rows as of ``at`` ahead of their change; nothing if what is written is as new or newer."""
        if rows and at > self._position:
            await self._early_rows.do((at, rows))

    async def _apply_group_early(self, group: Sequence[tuple[Position, Rows]]) -> list[None]:
        async with self._turn:
            hosts: dict[str, Host] = {}
            desktops: dict[str, Desktop] = {}
            ahead: dict[str, Position] = {}
            for at, rows in sorted(group, key=lambda one: one[0]):
                if at > self._position:
                    hosts |= {host.name: host for host in rows.hosts}
                    desktops |= {desktop.id: desktop for desktop in rows.desktops}
                    ahead |= dict.fromkeys((one.id for one in rows.desktops), at)
                    ahead |= dict.fromkeys((one.name for one in rows.hosts), at)
            if newer := Rows(hosts=tuple(hosts.values()), desktops=tuple(desktops.values())):
                await self._apply(newer)
                self._applied_early |= ahead
        return [None] * len(group)

    def _without_applied(self, rows: Rows, position: Position) -> Rows:
        """Those that are not written already as they are at ``position``, or as they were later."""

        def is_old(key: str) -> bool:
            return key in self._applied_early and self._applied_early[key] >= position

        return Rows(
            hosts=tuple(host for host in rows.hosts if not is_old(host.name)),
            copies=rows.copies,
            desktops=tuple(desktop for desktop in rows.desktops if not is_old(desktop.id)),
        )

    def _advance(self, position: Position) -> None:
        self._position = position
        self._applied_early = {key: at for key, at in self._applied_early.items() if at > position}

    async def _apply(self, rows: Rows, position: Position | None = None) -> None:
        written = await self._status.apply(self._cluster, rows, position)
        self._rows.labels(how="compared").inc(len(rows.hosts) + len(rows.copies) + len(rows.desktops))
        self._rows.labels(how="written").inc(written)

    async def _read_all(self) -> None:
        """Every page of every section; what the cluster does not name is gone."""
        named = SeenKeys()
        start: Position | None = None
        try:
            for section in SECTIONS:
                after: str | None = None
                while True:
                    page = await self._ask(GetPage(section=section, after=after))
                    start = start or Position(page.epoch, page.sequence)
                    if page.epoch != start.epoch:
                        return  # the cluster was restarted meanwhile; its mark brings us back here
                    await self._apply(page.rows)
                    named.add(page.rows)
                    after = page.next
                    if after is None:
                        break
        except (NoAnswer, MessageError) as error:
            log.warning("status_read_incomplete", reason=str(error))
            return
        assert start is not None
        await self._status.retain(self._cluster, named, start)
        self._advance(start)
        await self._confirm()
        log.info("status_read", desktops=len(named.desktops), hosts=len(named.hosts))

    async def _confirm(self) -> None:
        now = now_ms()
        if not 0 <= now - self._confirmed < self._confirm_every:  # a clock that was set back counts as later
            await self._status.heard(self._cluster, now, self._position)
            self._confirmed = now
