"""Hosts that know more than the cluster's database, and their guests that it does not know.

An administrator's word about them may be given beside a cluster process, which sees it at its next look.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import uuid_utils
from sqlalchemy import insert, not_, select, update

from pupitre.store.cluster_rows import Doubt, UnknownGuest
from pupitre.store.schema import epochs, host_doubts, notes, unknown_guests
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database

MOST_DETAIL = 1000


@dataclass(frozen=True, slots=True)
class DoubtedHost:
    """A host that waits for an administrator's word, and its guests that this database does not know."""

    host: str
    doubt: Doubt
    guests: tuple[UnknownGuest, ...]


def is_cluster_in_doubt(doubts: Iterable[Doubt]) -> bool:
    """Whether the cluster as a whole has to wait: one host's mere word is no evidence, a proof or two words are."""
    waiting = [doubt for doubt in doubts if not doubt.confirmed]
    return len(waiting) > 1 or any(doubt.proven for doubt in waiting)


async def read_doubts(connection: Connection) -> dict[str, Doubt]:
    rows = await connection.execute(select(host_doubts))
    return {row.host: Doubt(row.since, row.confirmed, row.proven) for row in rows}


async def read_unknown(connection: Connection) -> dict[tuple[str, str], UnknownGuest]:
    rows = await connection.execute(select(unknown_guests))
    return {(row.host, row.desktop): UnknownGuest(**row._asdict()) for row in rows}


async def waiting(database: Database) -> list[DoubtedHost]:
    """The hosts that an administrator has to decide on, by name."""
    async with database.read() as connection:
        doubts, unknown = await read_doubts(connection), await read_unknown(connection)
    return [
        DoubtedHost(host, doubt, tuple(guest for key, guest in sorted(unknown.items()) if key[0] == host))
        for host, doubt in sorted(doubts.items())
        if not doubt.confirmed
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
