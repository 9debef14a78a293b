"""Sign-ins that are over, on their way to the hosts: whoever watches a screen by one must be shown out.

The end of a sign-in leaves a row in ``accounts`` in the same transaction. The portal
copies it into ``commands``, where the endpoint finds it, and then forgets it; the
endpoint forgets it when every host has been told, or when the sign-in would have
ended by itself. Nothing is lost by a crash between two of these steps.
"""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import delete, or_, select

from pupitre.store.schema import commands_ended
from pupitre.store.sql.engine import Database
from pupitre.store.sql.upsert import upsert_rows

REVOKED = "ended"
"""What wakes the endpoint."""


class Revocation(NamedTuple):
    """``token_hash`` is SHA-256 in hex. ``until`` (Unix ms): when the sign-in would have ended by itself."""

    token_hash: str
    until: int


class Revocations:
    """The part of the database ``commands`` that is about them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def add(self, revocations: Collection[Revocation]) -> None:
        """May be repeated."""
        async with self.database.write(REVOKED) as connection:
            await upsert_rows(connection, commands_ended, [revocation._asdict() for revocation in revocations])

    async def to_send(self) -> list[str]:
        """Token hashes of revocations that the hosts are not known to have heard of."""
        query = select(commands_ended.c.token_hash).order_by(commands_ended.c.token_hash)
        async with self.database.read() as connection:
            return [str(row.token_hash) for row in await connection.execute(query)]

    async def mark_sent(self, token_hashes: Collection[str], *, now: int) -> None:
        """The hosts have heard of these; forget them, and what is past."""
        over = or_(commands_ended.c.token_hash.in_(token_hashes), commands_ended.c.until <= now)
        async with self.database.write() as connection:
            await connection.execute(delete(commands_ended).where(over))
