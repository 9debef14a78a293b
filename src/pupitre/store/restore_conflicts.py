"""Hosts that know more than the cluster's database, and their guests that it does not know.

An administrator's word about them may be given beside a cluster process, which sees it at its next look.
"""

from collections.abc import Collection
from dataclasses import dataclass

import uuid_utils
from sqlalchemy import insert, not_, select, update

from pupitre.scheduler.state import RestoreConflict, UnknownGuest
from pupitre.store.schema import epochs, host_doubts, notes, unknown_guests
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database

MOST_DETAIL = 1000


@dataclass(frozen=True, slots=True)
class ConflictingHost:
    """A host that waits for an administrator's word, and its guests that this database does not know."""

    host: str
    conflict: RestoreConflict
    guests: tuple[UnknownGuest, ...]


async def read_conflicts(connection: Connection) -> dict[str, RestoreConflict]:
    rows = await connection.execute(select(host_doubts))
    return {row.host: RestoreConflict(row.since, row.confirmed, row.proven) for row in rows}


async def read_unknown_guests(connection: Connection) -> dict[tuple[str, str], UnknownGuest]:
    rows = await connection.execute(select(unknown_guests))
    return {(row.host, row.desktop): UnknownGuest(**row._asdict()) for row in rows}


async def waiting(database: Database) -> list[ConflictingHost]:
    """The hosts that an administrator has to decide on, by name."""
    async with database.read() as connection:
        conflicts, guests = await read_conflicts(connection), await read_unknown_guests(connection)
    return [
        ConflictingHost(host, conflict, tuple(guest for key, guest in sorted(guests.items()) if key[0] == host))
        for host, conflict in sorted(conflicts.items())
        if not conflict.confirmed
    ]


async def confirm(database: Database, *, now: int, hosts: Collection[str] | None = None) -> list[str]:
    """The cluster shall go on from what it knows and take over what its own key has signed; the hosts that knew more.

    ``hosts``: only these.
    """
    async with database.write() as connection:
        query = select(host_doubts.c.host).where(not_(host_doubts.c.confirmed)).order_by(host_doubts.c.host)
        every = [str(host) for (host,) in await connection.execute(query)]
        meant = [host for host in every if hosts is None or host in hosts]
        if meant:
            await connection.execute(update(host_doubts).where(host_doubts.c.host.in_(meant)).values(confirmed=True))
            if meant == every:
                await connection.execute(update(epochs).values(confirmed=epochs.c.value))
            detail = f"An administrator wants the cluster to go on from its restored database ({', '.join(meant)})."
            note = {"id": str(uuid_utils.uuid7()), "at": now, "action": "restored_confirmed", "subject": "cluster"}
            await connection.execute(insert(notes).values(**note, detail=detail[:MOST_DETAIL]))
    return meant
