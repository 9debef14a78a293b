"""The status database as a mirror of the cluster: full pages once, then numbered changes.

A change that does not follow the last one seen, a mark beyond it, or another epoch
means that something was missed: then all pages are read again. Rows say how things
are, not what happened, so taking one twice does no harm.
"""

import asyncio

import structlog

from pupitre.domain.status import Position, Rows
from pupitre.errors import LinkDown, MessageError
from pupitre.store.status import Status
from pupitre.wire.link import Link
from pupitre.wire.messages import Changed, GetPage, Mark, Page
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)

SECTIONS = ("hosts", "copies", "desktops")


class StatusMirror:
    def __init__(self, cluster: str, status: Status, link: Link, subjects: Subjects) -> None:
        self._cluster = cluster
        self._status = status
        self._link = link
        self._subjects = subjects
        self._position = Position()
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
                await self._status.apply(self._cluster, change.rows, position)
                self._position = position

    async def mark(self, mark: Mark) -> None:
        async with self._turn:
            if mark.epoch != self._position.epoch or mark.sequence > self._position.sequence:
                await self._read_all()

    async def foretell(self, rows: Rows, at: Position) -> None:
        """Rows as of ``at`` ahead of their change; nothing if what is written is as new or newer."""
        async with self._turn:
            if rows and (at.epoch != self._position.epoch or at.sequence > self._position.sequence):
                await self._status.apply(self._cluster, rows)

    async def _read_all(self) -> None:
        """Every page of every section; what the cluster does not name is gone."""
        kept = Rows()
        start: Position | None = None
        try:
            for section in SECTIONS:
                after: str | None = None
                while True:
                    ask = GetPage(section=section, after=after)
                    page = await self._link.request(self._subjects.commands, ask, Page, timeout=5)
                    start = start or Position(page.epoch, page.sequence)
                    if page.epoch != start.epoch:
                        return  # the cluster was restarted meanwhile; its mark brings us back here
                    await self._status.apply(self._cluster, page.rows)
                    kept = Rows(
                        kept.hosts + page.rows.hosts,
                        kept.copies + page.rows.copies,
                        kept.desktops + page.rows.desktops,
                    )
                    after = page.next
                    if after is None:
                        break
        except (LinkDown, MessageError) as error:
            log.warning("The cluster's status was not read to its end.", reason=str(error))
            return
        assert start is not None
        await self._status.retain(kept)
        await self._status.apply(self._cluster, Rows(), start)
        self._position = start
        log.info("The cluster's status is read.", desktops=len(kept.desktops), hosts=len(kept.hosts))
