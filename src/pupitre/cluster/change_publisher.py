"""Changes of the cluster's rows on their way to the endpoint, in numbered messages.

Nobody answers: a reader that missed one sees the gap in the numbers, at the latest by the next position.
"""

import asyncio
from collections.abc import Sequence

from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.status import Rows
from pupitre.errors import Unavailable
from pupitre.store.cluster import ClusterStore, Committed
from pupitre.timings import GATHER_CHANGES
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import MAX_SIZE, Changed, StatusPosition, encode
from pupitre.wire.subjects import Subjects

MOST_ROWS = 500
"""Rows in one change."""


class ChangePublisher:
    """``published`` is the version up to which changes were told. Set ``due`` to have it look again."""

    def __init__(self, store: ClusterStore, broker: BrokerConnection, subjects: Subjects) -> None:
        self.due = asyncio.Event()
        self.published = 0
        self._store = store
        self._broker = broker
        self._subject = subjects.status
        self._committed: list[Committed] = []
        self._removals = False

    def add(self, committed: Committed) -> None:
        """Take a change that was just committed."""
        self._committed.append(committed)
        self._removals |= committed.removals
        self.due.set()

    def read_all(self, *, removals: bool = False) -> None:
        """Look at the database again; ``removals``: hosts may have been taken away."""
        self._committed.clear()
        self._removals |= removals
        self.due.set()

    @property
    def position(self) -> StatusPosition:
        """Position of the changes."""
        return StatusPosition(epoch=self._store.epoch, sequence=self.published)

    async def publish(self) -> bool:
        """Tell what is new."""
        if not self._removals and all(one.rows is not None and not one.rows.hosts for one in self._committed):
            await asyncio.sleep(GATHER_CHANGES)
        removals, self._removals = self._removals, False
        committed, self._committed = self._committed, []
        try:
            merged = merge_committed(self.published, committed)
            version, rows = merged or await self._store.changes(self.published)
        except Unavailable:
            self._removals |= removals
            raise
        if rows or removals:
            await self._send(version, rows, removals=removals)
        return True

    async def _send(self, version: int, rows: Rows, *, removals: bool) -> None:
        """One message; for more than fits into one, or a removal, a position: it has the reader ask for pages."""
        # Before a removal its rows are told as of the step before: pages do not name what is gone, nor why.
        told = version - 1 if removals else version
        changed = Changed(epoch=self._store.epoch, after=self.published, sequence=told, rows=rows)
        fits = len(rows.hosts) + len(rows.copies) + len(rows.desktops) <= MOST_ROWS and len(encode(changed)) <= MAX_SIZE
        self.published = version
        if fits:
            await self._broker.publish(self._subject, changed)
        if removals or not fits:
            await self._broker.publish(self._subject, self.position)

    async def publish_positions(self, interval: float) -> None:
        """Publish the position at intervals, so that a lost last change is noticed."""
        while True:
            await self._broker.publish(self._subject, self.position)
            await asyncio.sleep(interval)


def merge_committed(after: int, committed: Sequence[Committed]) -> tuple[int, Rows] | None:
    """The latest rows of transactions that follow ``after`` without a gap, and the version they bring to.

    None where one is missing, or does not know its rows.
    """
    hosts: dict[str, Host] = {}
    desktops: dict[str, Desktop] = {}
    version = after
    for one in committed:
        if one.version <= after:
            continue
        if one.version != version + 1 or one.rows is None:
            return None
        version = one.version
        hosts |= {host.name: host for host in one.rows.hosts}
        desktops |= {desktop.id: desktop for desktop in one.rows.desktops}
    if version == after:
        return None
    return version, Rows(hosts=tuple(hosts.values()), desktops=tuple(desktops.values()))
