"""The database ``cluster``: the journal of commands, and desktops as wanted beside as seen.

A command is journalled and decided in one transaction, so a command that was
answered is never lost and one that comes again changes nothing.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Table, and_, case, delete, func, insert, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from pupitre.domain.command import CommandKind, CommandState, Fault, Order, desktop_of
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host
from pupitre.domain.image import CopyState, Image, ImageSpec
from pupitre.domain.placement import Candidate
from pupitre.domain.status import HostImage, Rows
from pupitre.store.commands import decode_order, encode_order
from pupitre.store.engine import Database, next_version
from pupitre.store.rows import (
    AnyRow,
    copy_to_row,
    desktop_from_row,
    desktop_to_row,
    host_from_row,
    host_to_row,
    image_from_row,
)
from pupitre.store.schema import (
    cluster_copies,
    cluster_counter,
    cluster_desktops,
    cluster_hosts,
    epochs,
    journal,
)

PAGE = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """A journalled command; ``outcome`` None while it is under way."""

    id: str
    user: str
    order: Order
    deadline: int
    outcome: CommandState | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A desktop as the cluster keeps it. ``wanted`` is RUNNING or GONE, whatever ``seen`` says."""

    seen: Desktop
    wanted: DesktopState
    memory_mib: int
    vcpus: int


class Transaction:
    """Reads and writes of one transaction; every write takes the transaction's one version."""

    def __init__(self, connection: AsyncConnection, version: int) -> None:
        self._connection = connection
        self._version = version

    async def entry(self, command_id: str) -> Entry | None:
        row = (await self._connection.execute(select(journal).where(journal.c.id == command_id))).one_or_none()
        return _entry(row) if row else None

    async def add_entry(self, entry: Entry, *, now: int) -> None:
        await self._connection.execute(
            insert(journal).values(
                id=entry.id,
                user_id=entry.user,
                kind=entry.order.kind,
                payload=encode_order(entry.order),
                desktop=desktop_of(entry.order),
                accepted=now,
                deadline=entry.deadline,
                outcome=entry.outcome,
                fault_code=entry.fault.code if entry.fault else None,
                fault_reason=entry.fault.reason if entry.fault else None,
                reported=False,
            )
        )

    async def finish(self, command_id: str, outcome: CommandState, fault: Fault | None = None) -> None:
        """Record the one outcome; a second one changes nothing."""
        await self._connection.execute(
            update(journal)
            .where(journal.c.id == command_id, journal.c.outcome.is_(None))
            .values(
                outcome=outcome,
                fault_code=fault.code if fault else None,
                fault_reason=fault.reason if fault else None,
            )
        )

    async def open_entries(self, desktop_id: str, kind: CommandKind) -> list[Entry]:
        query = select(journal).where(
            journal.c.desktop == desktop_id, journal.c.kind == kind, journal.c.outcome.is_(None)
        )
        return [_entry(row) for row in await self._connection.execute(query)]

    async def desktop(self, desktop_id: str) -> Placed | None:
        query = select(cluster_desktops).where(cluster_desktops.c.id == desktop_id)
        row = (await self._connection.execute(query)).one_or_none()
        return _placed(row) if row else None

    async def desktops_on(self, host: str) -> list[Placed]:
        query = select(cluster_desktops).where(
            cluster_desktops.c.host == host, cluster_desktops.c.state != DesktopState.GONE
        )
        return [_placed(row) for row in await self._connection.execute(query)]

    async def put_desktop(self, placed: Placed) -> None:
        await self._put(
            cluster_desktops,
            {
                **desktop_to_row(placed.seen),
                "wanted": placed.wanted,
                "memory_mib": placed.memory_mib,
                "vcpus": placed.vcpus,
            },
        )

    async def host(self, name: str) -> Host | None:
        query = select(cluster_hosts).where(cluster_hosts.c.name == name)
        row = (await self._connection.execute(query)).one_or_none()
        return host_from_row(row) if row else None

    async def put_host(self, host: Host) -> None:
        held = await self.host(host.name)
        fresh = {"wanted": "ready", "drained_by": None, "used_memory_mib": 0, "used_vcpus": 0}
        await self._put(cluster_hosts, {**host_to_row(host), **({} if held else fresh)})

    async def put_copies(self, host: str, copies: Sequence[tuple[Image, ImageSpec | None]]) -> None:
        """Replace the copies of one host; those not named are marked gone."""
        for image, spec in copies:
            await self._put(
                cluster_copies,
                {
                    **copy_to_row(host, image),
                    "spec": msgspec.json.encode(spec).decode() if spec else None,
                    "gone": False,
                },
            )
        await self._connection.execute(
            update(cluster_copies)
            .where(
                cluster_copies.c.host == host,
                not_(cluster_copies.c.gone),
                cluster_copies.c.image.not_in([image.id for image, _ in copies]),
            )
            .values(gone=True, version=self._version)
        )

    async def image(self, image_id: str) -> Image | None:
        """The image as some host has it ready."""
        query = select(cluster_copies).where(
            cluster_copies.c.image == image_id,
            cluster_copies.c.state == CopyState.READY,
            not_(cluster_copies.c.gone),
        )
        row = (await self._connection.execute(query.limit(1))).one_or_none()
        return image_from_row(row) if row else None

    async def candidates(self, *, overcommit: float) -> list[Candidate]:
        """The snapshot for placement."""
        used = {
            row.host: (int(row.memory or 0), int(row.vcpus or 0))
            for row in await self._connection.execute(
                select(
                    cluster_desktops.c.host,
                    func.sum(cluster_desktops.c.memory_mib).label("memory"),
                    func.sum(cluster_desktops.c.vcpus).label("vcpus"),
                )
                .where(cluster_desktops.c.state != DesktopState.GONE, cluster_desktops.c.host.is_not(None))
                .group_by(cluster_desktops.c.host)
            )
        }
        images: dict[str, set[str]] = {}
        ready = select(cluster_copies.c.host, cluster_copies.c.image).where(
            cluster_copies.c.state == CopyState.READY, not_(cluster_copies.c.gone)
        )
        for row in await self._connection.execute(ready):
            images.setdefault(row.host, set()).add(row.image)
        found = []
        for row in await self._connection.execute(select(cluster_hosts).order_by(cluster_hosts.c.name)):
            host = host_from_row(row)
            memory, vcpus = used.get(host.name, (0, 0))
            found.append(
                Candidate(
                    name=host.name,
                    state=host.state,
                    edition=host.edition,
                    images=frozenset(images.get(host.name, ())),
                    memory_mib=host.facts.memory_mib if host.facts else 0,
                    vcpus=int(host.facts.vcpus * overcommit) if host.facts else 0,
                    disk_free_mib=host.facts.disk_free_mib if host.facts else 0,
                    used_memory_mib=memory,
                    used_vcpus=vcpus,
                )
            )
        return found

    async def _put(self, table: Table, values: dict[str, Any]) -> None:
        """Insert or update; a row that stays as it is keeps its version."""
        key = and_(*(column == values[column.name] for column in table.primary_key.columns))
        held = (await self._connection.execute(select(table).where(key))).one_or_none()
        if held is None:
            await self._connection.execute(insert(table).values(version=self._version, **values))
        elif any(held._mapping[name] != value for name, value in values.items()):
            await self._connection.execute(update(table).where(key).values(version=self._version, **values))


class ClusterStore:
    """``on_change`` is called after each transaction that wrote."""

    def __init__(self, database: Database, *, on_change: Callable[[], None]) -> None:
        self.database = database
        self._on_change = on_change

    async def begin_epoch(self, *, now: int) -> int:
        """A new epoch: what an earlier cluster process still says is void from here on.

        No less than ``now`` (Unix ms), so that hosts follow a cluster whose database was made anew.
        """
        async with self.database.write() as connection:
            await connection.execute(
                update(epochs).values(value=case((epochs.c.value >= now, epochs.c.value + 1), else_=now))
            )
            return int((await connection.execute(select(epochs.c.value))).scalar_one())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self.database.write() as connection:
            yield Transaction(connection, await next_version(connection, cluster_counter))
        self._on_change()

    async def entry(self, command_id: str) -> Entry | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(journal).where(journal.c.id == command_id))).one_or_none()
        return _entry(row) if row else None

    async def sequence(self) -> int:
        async with self.database.read() as connection:
            return int((await connection.execute(select(cluster_counter.c.value))).scalar_one())

    async def unfinished(self) -> list[Entry]:
        query = select(journal).where(journal.c.outcome.is_(None)).order_by(journal.c.id)
        async with self.database.read() as connection:
            return [_entry(row) for row in await connection.execute(query)]

    async def unreported(self) -> list[Entry]:
        """Commands whose outcome the endpoint has not confirmed, oldest first."""
        query = select(journal).where(not_(journal.c.reported), journal.c.outcome.is_not(None))
        async with self.database.read() as connection:
            return [_entry(row) for row in await connection.execute(query.order_by(journal.c.id).limit(PAGE))]

    async def reported(self, command_ids: Sequence[str]) -> None:
        async with self.database.write() as connection:
            await connection.execute(update(journal).where(journal.c.id.in_(command_ids)).values(reported=True))

    async def desktop(self, desktop_id: str) -> Placed | None:
        query = select(cluster_desktops).where(cluster_desktops.c.id == desktop_id)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return _placed(row) if row else None

    async def spec(self, host: str, image: str) -> ImageSpec | None:
        query = select(cluster_copies.c.spec).where(cluster_copies.c.host == host, cluster_copies.c.image == image)
        async with self.database.read() as connection:
            text = (await connection.execute(query)).scalar()
        return msgspec.json.decode(text, type=ImageSpec) if text else None

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
            sequence = int((await connection.execute(select(cluster_counter.c.value))).scalar_one())
            hosts = await connection.execute(select(cluster_hosts).where(cluster_hosts.c.version > after))
            copies = await connection.execute(select(cluster_copies).where(cluster_copies.c.version > after))
            desktops = await connection.execute(select(cluster_desktops).where(cluster_desktops.c.version > after))
            return sequence, Rows(
                hosts=tuple(host_from_row(row) for row in hosts),
                copies=tuple(HostImage(row.host, image_from_row(row), row.gone) for row in copies),
                desktops=tuple(desktop_from_row(row) for row in desktops),
            )

    async def page(self, section: str, after: str | None) -> tuple[int, Rows, str | None]:
        """One page of everything there is: the version, rows of ``section``, and where the next page begins."""
        async with self.database.read() as connection:
            sequence = int((await connection.execute(select(cluster_counter.c.value))).scalar_one())
            if section == "hosts":
                host_rows = await connection.execute(select(cluster_hosts))
                return sequence, Rows(hosts=tuple(host_from_row(row) for row in host_rows)), None
            if section == "copies":
                copy_rows = await connection.execute(select(cluster_copies).where(not_(cluster_copies.c.gone)))
                found = tuple(HostImage(row.host, image_from_row(row), row.gone) for row in copy_rows)
                return sequence, Rows(copies=found), None
            query = select(cluster_desktops).where(cluster_desktops.c.state != DesktopState.GONE)
            if after:
                query = query.where(cluster_desktops.c.id > after)
            rows = (await connection.execute(query.order_by(cluster_desktops.c.id).limit(PAGE))).all()
            following = str(rows[-1].id) if len(rows) == PAGE else None
            return sequence, Rows(desktops=tuple(desktop_from_row(row) for row in rows)), following

    async def forget(self, before: int) -> None:
        """Drop desktops that have been gone, and commands that have been reported, since before ``before`` (ms)."""
        async with self.database.write() as connection:
            await connection.execute(
                delete(cluster_desktops).where(
                    cluster_desktops.c.state == DesktopState.GONE, cluster_desktops.c.since < before
                )
            )
            await connection.execute(delete(journal).where(journal.c.reported, journal.c.accepted < before))


def _entry(row: AnyRow) -> Entry:
    return Entry(
        id=row.id,
        user=row.user_id,
        order=decode_order(row.payload),
        deadline=row.deadline,
        outcome=CommandState(row.outcome) if row.outcome else None,
        fault=Fault(row.fault_code, row.fault_reason) if row.fault_code else None,
    )


def _placed(row: AnyRow) -> Placed:
    return Placed(desktop_from_row(row), DesktopState(row.wanted), row.memory_mib, row.vcpus)
