"""The database ``status``: what the cluster last said. The endpoint writes it; the portal only reads.

Each written batch takes one version for all its rows. A row that is written
again unchanged keeps its version, so that a full page wakes nobody without need.
What a change costs does not depend on how much else there is.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, insert, not_, select, true, update

from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host
from pupitre.domain.image import Image
from pupitre.domain.status import ClusterLink, HostImage, Position, Rows, catalogue
from pupitre.store.rows import (
    AnyRow,
    copy_to_row,
    desktop_from_row,
    desktop_to_row,
    host_from_row,
    host_to_row,
    image_from_row,
)
from pupitre.store.schema import copies, desktops, hosts, links, status_counter
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database, next_version
from pupitre.store.sql.versioned import chunks, has_key, put_rows


@dataclass(frozen=True, slots=True)
class StatusChanges:
    """All that changed after a version; ``version`` is the one to ask with next.

    ``host_names`` are those of all hosts there are, when some may have been taken away, else None.
    """

    version: int
    rows: Rows
    links: tuple[ClusterLink, ...]
    host_names: frozenset[str] | None


@dataclass(slots=True)
class SeenKeys:
    """The keys of all rows in a full set of pages."""

    hosts: set[str] = field(default_factory=set)
    copies: set[tuple[str, str]] = field(default_factory=set)
    desktops: set[str] = field(default_factory=set)

    def add(self, rows: Rows) -> None:
        self.hosts |= {host.name for host in rows.hosts}
        self.copies |= {(copy.host, copy.image.id) for copy in rows.copies if not copy.gone}
        self.desktops |= {desktop.id for desktop in rows.desktops}


CHANGED = "status"
"""What wakes the portals."""


_VERSION = select(status_counter.c.value)
_DESKTOPS = select(desktops).where(desktops.c.id.in_(bindparam("ids", expanding=True)))
_HOSTS = select(hosts).order_by(hosts.c.name)
_LINKS = select(links).order_by(links.c.cluster)
_COPIES = select(copies).where(not_(copies.c.gone))
_DESKTOPS_THERE = select(desktops).where(desktops.c.state != DesktopState.GONE)
_HEARTBEAT = select(status_counter.c.value, links).select_from(status_counter.outerjoin(links, true()))
_TABLES = (hosts, copies, desktops, links)
# In one look at the ends of their indexes, so that tables in which nothing is new are not asked.
_NEWEST = select(status_counter.c.value, *(select(func.max(table.c.version)).scalar_subquery() for table in _TABLES))
_NEWER = tuple(select(table).where(table.c.version > bindparam("after")).order_by(table.c.version) for table in _TABLES)
_AT_CLUSTER = links.c.cluster == bindparam("where")
_MOVE = update(links).where(_AT_CLUSTER).values(epoch=bindparam("to_epoch"), sequence=bindparam("to_sequence"))
_HEARD = _MOVE.values(heard=bindparam("at"))


class Status:
    def __init__(self, database: Database) -> None:
        self.database = database

    # Reading

    async def desktop(self, desktop_id: str) -> Desktop | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(desktops).where(desktops.c.id == desktop_id))).one_or_none()
        return desktop_from_row(row) if row else None

    async def desktops(self, ids: Collection[str]) -> list[Desktop]:
        """Those of these desktops that the cluster ever named, the gone ones too."""
        return [desktop_from_row(row) for row in await self.database.select(_DESKTOPS, {"ids": list(ids)})]

    async def hosts(self) -> list[Host]:
        return [host_from_row(row) for row in await self.database.select(_HOSTS)]

    async def host(self, name: str) -> Host | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(hosts).where(hosts.c.name == name))).one_or_none()
        return host_from_row(row) if row else None

    async def images(self) -> list[Image]:
        """Every image of the cluster once, by name, in the state of its best copy."""
        return catalogue([_copy(row) for row in await self.database.select(_COPIES)])

    async def image(self, image_id: str) -> Image | None:
        return next((image for image in await self.images() if image.id == image_id), None)

    async def links(self) -> list[ClusterLink]:
        return [_link(row) for row in await self.database.select(_LINKS)]

    async def heartbeat(self) -> tuple[int, list[ClusterLink]]:
        """The version, and the links with the time at which each cluster was heard: one short query."""
        rows = list(await self.database.select(_HEARTBEAT))
        return int(rows[0].value), [_link(row) for row in rows if row.cluster is not None]

    async def everything(self) -> StatusChanges:
        """All rows, without what is gone, as changes after nothing."""
        version = await self.version()  # what is committed from here on is newer, and comes again
        host_rows, copy_rows, desktop_rows, link_rows = [
            await self.database.select(query) for query in (_HOSTS, _COPIES, _DESKTOPS_THERE, _LINKS)
        ]
        rows = Rows(
            hosts=tuple(host_from_row(row) for row in host_rows),
            copies=tuple(_copy(row) for row in copy_rows),
            desktops=tuple(desktop_from_row(row) for row in desktop_rows),
        )
        return StatusChanges(version, rows, tuple(_link(row) for row in link_rows), None)

    async def version(self) -> int:
        return int((await self.database.select(_VERSION)).scalar_one())

    async def changes(self, after: int) -> StatusChanges:
        # One statement's view each: what is committed in between is newer than ``version``, and comes again.
        version, *newest = (await self.database.select(_NEWEST)).first()
        host_rows, copy_rows, desktop_rows, link_rows = [
            await self.database.select(query, {"after": after}) if latest is not None and latest > after else []
            for query, latest in zip(_NEWER, newest, strict=True)
        ]
        # With every host that is taken away, its cluster's link takes the version: see `retain`.
        names = [row.name for row in await self.database.select(_HOSTS)] if link_rows else None
        rows = Rows(
            hosts=tuple(host_from_row(row) for row in host_rows),
            copies=tuple(_copy(row) for row in copy_rows),
            desktops=tuple(desktop_from_row(row) for row in desktop_rows),
        )
        return StatusChanges(
            version, rows, tuple(_link(row) for row in link_rows), None if names is None else frozenset(names)
        )

    # Writing

    async def position(self, cluster_name: str) -> Position:
        query = select(links.c.epoch, links.c.sequence).where(links.c.cluster == cluster_name)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return Position(row.epoch, row.sequence) if row else Position()

    async def apply(self, cluster_name: str, rows: Rows, position: Position | None = None) -> int:
        """Write rows as they are now, and how far they bring us, in one transaction; how many had changed."""
        async with self.database.write(CHANGED) as connection:
            version = await next_version(connection, status_counter)
            changed = await put_rows(connection, hosts, [host_to_row(host) for host in rows.hosts], version)
            copy_rows = [{**copy_to_row(copy.host, copy.image), "gone": copy.gone} for copy in rows.copies]
            changed += await put_rows(connection, copies, copy_rows, version)
            desktop_rows = [desktop_to_row(desktop) for desktop in rows.desktops]
            changed += await put_rows(connection, desktops, desktop_rows, version)
            if position:
                where = {"where": cluster_name, "to_epoch": position.epoch, "to_sequence": position.sequence}
                await connection.execute(_MOVE, where)
        return changed

    async def retain(self, cluster_name: str, named: SeenKeys, position: Position) -> None:
        """End a full set of pages: what they did not name is gone, and the position is theirs."""
        async with self.database.write(CHANGED) as connection:
            version = await next_version(connection, status_counter)
            held = {(str(name),) for (name,) in await connection.execute(select(hosts.c.name))}
            taken_away = held - {(name,) for name in named.hosts}
            for some in chunks(sorted(taken_away)):
                await connection.execute(delete(hosts).where(has_key(hosts, some)))
            images = await connection.execute(select(copies.c.host, copies.c.image).where(not_(copies.c.gone)))
            lost = {(str(host), str(image)) for host, image in images} - named.copies
            await _set(connection, copies, lost, gone=True, version=version)
            ids = await connection.execute(select(desktops.c.id).where(desktops.c.state != DesktopState.GONE))
            gone = {(str(desktop),) for (desktop,) in ids} - {(desktop,) for desktop in named.desktops}
            await _set(connection, desktops, gone, state=DesktopState.GONE, version=version)
            await connection.execute(
                update(links)
                .where(links.c.cluster == cluster_name)
                .values(
                    epoch=position.epoch, sequence=position.sequence, **({"version": version} if taken_away else {})
                )
            )

    async def heard(self, cluster_name: str, at: int, position: Position) -> None:
        """The cluster has said that all rows are as they stand (Unix ms, and how far). No news: nobody is woken."""
        values = {"where": cluster_name, "at": at, "to_epoch": position.epoch, "to_sequence": position.sequence}
        async with self.database.write() as connection:
            await connection.execute(_HEARD, values)

    async def set_link(self, link: ClusterLink) -> None:
        """Record whether the cluster is reached; while nothing changes, nothing is written and nobody woken."""
        here = links.c.cluster == link.cluster
        async with self.database.read() as connection:
            held = (await connection.execute(select(links).where(here))).one_or_none()
        if held is not None and (held.connected, held.reason) == (link.connected, link.reason):
            return
        values = {"connected": link.connected, "since": link.since, "reason": link.reason}
        if held is not None and held.connected == link.connected:
            values["since"] = held.since
        async with self.database.write(CHANGED) as connection:
            version = await next_version(connection, status_counter)
            moved = await connection.execute(update(links).where(here).values(version=version, **values))
            if not moved.rowcount:
                values |= {"epoch": 0, "sequence": 0, "heard": 0, "version": version}
                await connection.execute(insert(links).values(cluster=link.cluster, **values))


def _copy(row: AnyRow) -> HostImage:
    return HostImage(row.host, image_from_row(row), row.gone)


def _link(row: AnyRow) -> ClusterLink:
    return ClusterLink(row.cluster, row.connected, row.since, row.reason, row.heard)


async def _set(connection: Connection, table: Table, keys: Iterable[tuple[Any, ...]], **values: Any) -> None:
    for some in chunks(sorted(keys)):
        await connection.execute(update(table).where(has_key(table, some)).values(values))
