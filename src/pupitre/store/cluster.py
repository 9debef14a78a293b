"""The database ``cluster``: the journal of commands, and desktops as wanted beside as seen.

A change is a decision on what is there: `ClusterStore.change` has it decide in memory, on
the `ClusterState`, and writes what it changed; decisions that come at the same time share one
transaction. A command is journalled and decided in one of them, so a command that was
answered is never lost and one that comes again changes nothing. Each transaction first
checks that this process is still the cluster (`Deposed`).
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, TypeVar

from sqlalchemy import and_, bindparam, case, delete, exists, insert, not_, select, update
from sqlalchemy import or_ as sql_or

from pupitre.domain.command import desktop_of
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import Host
from pupitre.domain.image import ImageSpec
from pupitre.domain.status import HostImage, Rows
from pupitre.errors import Conflict, Deposed, PupitreError, SetupError
from pupitre.runtime.batch import Batch
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.state import AuditEvent, ClusterState, JournaledCommand, Outcomes, PlacedDesktop, ReadSet
from pupitre.store import cluster_state, restore_conflicts
from pupitre.store.cluster_rows import command_from_row, placed_from_row
from pupitre.store.rows import (
    desktop_from_row,
    host_from_row,
    image_from_row,
)
from pupitre.store.schema import (
    cluster_copies,
    cluster_counter,
    cluster_desktops,
    cluster_hosts,
    epochs,
    journal,
    notes,
    past_epochs,
)
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database

PAGE = 500
DEPOSED = "Another cluster server has taken over; this one has nothing more to say."

NOTHING = ReadSet()
R = TypeVar("R")
Decision = Callable[[Changes], Any]


@dataclass(frozen=True, slots=True)
class Committed:
    """Commit: its version, rows and outcomes (None: read them), and what else there is to tell."""

    version: int
    rows: Rows | None
    outcomes: Outcomes | None
    audit_events: bool
    removals: bool


_VERSION = select(cluster_counter.c.value)
_TAKE_VERSION = (
    update(cluster_counter)
    .where(exists().where(epochs.c.value == bindparam("mine")))
    .values(value=cluster_counter.c.value + 1)
)
_REPORTED = update(journal).where(journal.c.id.in_(bindparam("ids", expanding=True))).values(reported=True)


class ClusterStore:
    """``on_commit`` is called after each transaction that wrote.

    ``on_unsure`` is called when the answer to a commit was lost, and when somebody else has written, as the cluster
    process before this one may at its very end. Whoever is told calls `catch_up`, and then looks at everything.
    """

    def __init__(
        self,
        database: Database,
        *,
        on_commit: Callable[[Committed], None] = lambda _: None,
        on_unsure: Callable[[], None] = lambda: None,
    ) -> None:
        self.database = database
        self.epoch = 0
        self.version = 0
        self.state = ClusterState()
        self._past: dict[int, int] = {}
        self._deposed = asyncio.Event()
        self.on_commit = on_commit
        self.on_unsure = on_unsure
        self._changes: Batch[tuple[ReadSet, Decision], Any] = Batch(self._decide)

    async def begin_epoch(self, *, now: int, order_key: str | None = None) -> int:
        """A new epoch: what an earlier cluster process still says or writes is void from here on.

        No less than ``now`` (Unix ms), so that hosts follow a cluster whose database was made anew. ``order_key`` is
        the public half of the key that signs orders; the first one is kept. Raises `SetupError` for another one.
        """
        async with self.database.write() as connection:
            if order_key:
                await _keep_order_key(connection, order_key)
            self.version = int((await connection.execute(select(cluster_counter.c.value))).scalar_one())
            over = (await connection.execute(select(epochs.c.value))).scalar_one()
            if over:
                await connection.execute(insert(past_epochs).values(epoch=over, ended=self.version))
            await connection.execute(
                update(epochs).values(value=case((epochs.c.value >= now, epochs.c.value + 1), else_=now))
            )
            self.epoch = int((await connection.execute(select(epochs.c.value))).scalar_one())
            rows = await connection.execute(select(past_epochs))
            self._past = {row.epoch: row.ended for row in rows}
        await self.reload_conflicts()
        return self.epoch

    async def forget_order_key(self) -> None:
        """Keep the key of the next cluster server that begins an epoch. Raises `Unavailable`."""
        async with self.database.write() as connection:
            await connection.execute(update(epochs).values(order_key=None))

    def knows(self, epoch: int, version: int) -> bool:
        """Whether the changes of an earlier epoch up to ``version`` are all in this database.

        They are not where it was restored from a backup.
        """
        return version <= (self.version if epoch == self.epoch else self._past.get(epoch, -1))

    async def reload_conflicts(self) -> bool:
        """See what an administrator has confirmed; whether anything still waits for that."""
        async with self.database.read() as connection:
            await cluster_state.load_conflicts(connection, self.state)
        return self.state.waits_for_confirmation

    async def confirm(self, *, now: int, hosts: Collection[str] | None = None) -> list[str]:
        """See `pupitre.store.restore_conflicts.confirm`."""
        return await restore_conflicts.confirm(self.database, now=now, hosts=hosts)

    async def change(self, decide: Callable[[Changes], R], reads: ReadSet = NOTHING) -> R:
        """Result of ``decide``, once what it changed is on disk.

        It decides in memory, sees what ``reads`` names, and raises before it changes anything, if it does.
        Raises `Deposed` once another cluster server has begun an epoch, `Unavailable`.
        """
        result: R = await self._changes.do((reads, decide))
        return result

    async def refresh(self) -> None:
        """Take a version and write nothing: what the state lacks is read."""
        await self.change(lambda _: None)

    async def catch_up(self) -> None:
        """Wait for a commit whose answer was lost: it has been made when this returns, or never will be.

        The state is as the database is.
        """
        await self.refresh()  # takes the counter after whoever still holds it
        await self.reload_conflicts()

    async def _decide(self, group: Sequence[tuple[ReadSet, Decision]]) -> list[Any]:
        try:
            return await self._transact(group)
        except Conflict:  # something was not new; nothing has been written
            if not any(reads.new for reads, _ in group):
                raise
            return await self._transact(group, search=True)

    async def _transact(self, group: Sequence[tuple[ReadSet, Decision]], *, search: bool = False) -> list[Any]:
        wrote = False
        try:
            async with self.database.write() as connection:
                version = await self._next_version(connection)
                if version != self.state.version + 1:
                    self.state = await cluster_state.load(connection, version - 1)
                reads = reduce(or_, (reads for reads, _ in group))
                changes = await cluster_state.begin_changes(connection, self.state, reads, search=search)
                results = [_result(decide, changes) for _, decide in group]
                wrote = await cluster_state.save(connection, changes, version)
                if not wrote:
                    await connection.rollback()  # nothing to write is nothing to wait for
        except Conflict:
            raise
        except BaseException as error:
            self.state.version = -1
            if wrote and isinstance(error, Exception):  # the answer to the commit is missing, and we go on
                self.on_unsure()
            raise
        others_wrote = version != self.version + 1
        self.version = version if wrote else version - 1
        if others_wrote:
            self.on_unsure()
        if wrote:
            changes.apply(version)
            self.on_commit(
                Committed(
                    version,
                    changes.rows,
                    outcomes=changes.outcomes,
                    audit_events=bool(changes.audit_events),
                    removals=bool(changes.removed_hosts),
                )
            )
        return results

    async def _next_version(self, connection: Connection) -> int:
        version = await connection.change_and_read(_TAKE_VERSION, cluster_counter.c.value, {"mine": self.epoch})
        if version is None:
            self._deposed.set()
            raise Deposed(DEPOSED)
        return int(version)

    async def close(self) -> None:
        await self.database.close()

    async def until_deposed(self) -> None:
        """Wait for it. Raises `Deposed`."""
        await self._deposed.wait()
        raise Deposed(DEPOSED)

    async def command(self, command_id: str) -> JournaledCommand | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(journal).where(journal.c.id == command_id))).one_or_none()
        return command_from_row(row) if row else None

    async def sequence(self) -> int:
        return int((await self.database.select(_VERSION)).scalar_one())

    async def unfinished(self) -> list[JournaledCommand]:
        query = select(journal).where(journal.c.outcome.is_(None)).order_by(journal.c.id)
        async with self.database.read() as connection:
            return [command_from_row(row) for row in await connection.execute(query)]

    async def unreported(self) -> tuple[int, Outcomes]:
        """Commands whose outcome the endpoint has not confirmed, oldest first, with what they are about as it is now.

        The number is the version that this is a look at.
        """
        query = select(journal).where(not_(journal.c.reported), journal.c.outcome.is_not(None))
        async with self.database.read() as connection:
            sequence = int((await connection.execute(_VERSION)).scalar_one())
            entries = [
                command_from_row(row) for row in await connection.execute(query.order_by(journal.c.id).limit(PAGE))
            ]
            named = {desktop for entry in entries if (desktop := desktop_of(entry.order))}
            rows = await connection.execute(select(cluster_desktops).where(cluster_desktops.c.id.in_(named)))
            about = {row.id: Rows(desktops=(desktop_from_row(row),)) for row in rows}
            there = Rows(hosts=tuple(host_from_row(row) for row in await connection.execute(select(cluster_hosts))))
        return sequence, [
            (entry, about.get(desktop, Rows()) if (desktop := desktop_of(entry.order)) else there) for entry in entries
        ]

    async def reported(self, command_ids: Sequence[str]) -> None:
        async with self.database.write() as connection:
            await connection.execute(_REPORTED, {"ids": list(command_ids)})

    async def audit_events(self) -> list[AuditEvent]:
        """Events that the audit log has yet to be told, oldest first."""
        async with self.database.read() as connection:
            rows = await connection.execute(select(notes).order_by(notes.c.id).limit(PAGE))
        return [AuditEvent(*row) for row in rows]

    async def forget_audit_events(self, event_ids: Sequence[str]) -> None:
        """The audit log has them."""
        async with self.database.write() as connection:
            await connection.execute(delete(notes).where(notes.c.id.in_(event_ids)))

    async def desktop(self, desktop_id: str) -> PlacedDesktop | None:
        query = select(cluster_desktops).where(cluster_desktops.c.id == desktop_id)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return placed_from_row(row) if row else None

    async def placed_desktop(self, desktop_id: str) -> tuple[PlacedDesktop, ImageSpec | None] | None:
        """A desktop that is not gone, and what its host would start it from."""
        if self.state.version < 0:
            await self.refresh()
        placed = self.state.desktops.get(desktop_id)
        return (placed, self.state.spec(placed)) if placed else None

    async def hosts(self) -> list[Host]:
        async with self.database.read() as connection:
            return [host_from_row(row) for row in await connection.execute(select(cluster_hosts))]

    async def unsettled(self) -> list[str]:
        """Desktops on which something is still to do: wanted and seen differ."""
        query = select(cluster_desktops.c.id).where(
            cluster_desktops.c.host.is_not(None),
            cluster_desktops.c.state != DesktopState.GONE,
            cluster_desktops.c.state != cluster_desktops.c.wanted,
        )
        async with self.database.read() as connection:
            return [str(desktop) for (desktop,) in await connection.execute(query)]

    async def changes(self, after: int) -> tuple[int, Rows]:
        """Rows changed after version ``after``, and the version they bring a reader to."""
        async with self.database.read() as connection:
            # One statement's view each; a row changed in between comes again with the next batch.
            sequence = int((await connection.execute(_VERSION)).scalar_one())
            hosts = await connection.execute(select(cluster_hosts).where(cluster_hosts.c.version > after))
            copies = await connection.execute(select(cluster_copies).where(cluster_copies.c.version > after))
            desktops = await connection.execute(select(cluster_desktops).where(cluster_desktops.c.version > after))
            return sequence, Rows(
                hosts=tuple(host_from_row(row) for row in hosts),
                copies=tuple(HostImage(row.host, image_from_row(row), row.gone) for row in copies),
                desktops=tuple(desktop_from_row(row) for row in desktops),
            )

    async def page(self, section: str, after: str | None, *, limit: int = PAGE) -> tuple[int, Rows, str | None]:
        """One page of everything there is: the version, rows of ``section``, and where the next page begins."""
        async with self.database.read() as connection:
            sequence = int((await connection.execute(_VERSION)).scalar_one())
            rows, following = await _PAGES[section](connection, after, limit)
        return sequence, rows, following

    async def forget(self, before: int) -> None:
        """Drop desktops that have been gone, and commands that have been reported, since before ``before`` (ms)."""
        async with self.database.write() as connection:
            await connection.execute(
                delete(cluster_desktops).where(
                    cluster_desktops.c.state == DesktopState.GONE, cluster_desktops.c.since < before
                )
            )
            await connection.execute(delete(journal).where(journal.c.reported, journal.c.accepted < before))


def _result(decide: Decision, changes: Changes) -> Any:
    """Result, or its own error."""
    try:
        return decide(changes)
    except PupitreError as error:
        return error


async def _keep_order_key(connection: Connection, order_key: str) -> None:
    kept = (await connection.execute(select(epochs.c.order_key))).scalar_one()
    if kept is None:
        await connection.execute(update(epochs).values(order_key=order_key))
    elif kept != order_key:
        raise SetupError(
            "The key pki/cluster/order.key of this cluster server is not the one that has signed the cluster's orders.",
            "Put that one there, from a backup or from the other cluster server; if it is lost, run"
            " `pupitre pki init --new-order-key`.",
        )


async def _host_page(connection: Connection, after: str | None, limit: int) -> tuple[Rows, str | None]:
    query = select(cluster_hosts).order_by(cluster_hosts.c.name).limit(limit)
    if after:
        query = query.where(cluster_hosts.c.name > after)
    rows = await connection.execute(query)
    return Rows(hosts=tuple(host_from_row(row) for row in rows)), str(rows[-1].name) if len(rows) == limit else None


async def _copy_page(connection: Connection, after: str | None, limit: int) -> tuple[Rows, str | None]:
    query = select(cluster_copies).where(not_(cluster_copies.c.gone))
    if after:
        host, _, image = after.partition("/")  # no host has one in its name
        query = query.where(
            sql_or(
                cluster_copies.c.host > host,
                and_(cluster_copies.c.host == host, cluster_copies.c.image > image),
            )
        )
    rows = await connection.execute(query.order_by(cluster_copies.c.host, cluster_copies.c.image).limit(limit))
    found = tuple(HostImage(row.host, image_from_row(row), row.gone) for row in rows)
    return Rows(copies=found), f"{rows[-1].host}/{rows[-1].image}" if len(rows) == limit else None


async def _desktop_page(connection: Connection, after: str | None, limit: int) -> tuple[Rows, str | None]:
    query = select(cluster_desktops).where(cluster_desktops.c.state != DesktopState.GONE)
    if after:
        query = query.where(cluster_desktops.c.id > after)
    rows = await connection.execute(query.order_by(cluster_desktops.c.id).limit(limit))
    return Rows(desktops=tuple(desktop_from_row(row) for row in rows)), str(rows[-1].id) if len(rows) == limit else None


_PAGES = {"hosts": _host_page, "copies": _copy_page, "desktops": _desktop_page}
SECTIONS = frozenset(_PAGES)
"""Of which `ClusterStore.page` gives pages."""
