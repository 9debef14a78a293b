"""Wrong passwords in the database ``accounts``, so that all portals count together and a restart forgets nothing.

A sign-in that succeeds costs one read here. A failure costs one transaction, beside the
tens of milliseconds of its hash; what is refused unseen costs the read alone.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, case, delete, insert, or_, select, update

from pupitre.domain.people.throttle import Counted, Counter, Limit, Tally
from pupitre.errors import Conflict
from pupitre.store.audit import bounded
from pupitre.store.rows import AnyRow
from pupitre.store.schema import sign_in_failures
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database

_OVER = or_(sign_in_failures.c.until <= bindparam("now"), sign_in_failures.c.until > bindparam("latest"))
"""The window is over, or ends later than it could have: then the clock was set back."""
_TALLIES = select(sign_in_failures).where(sign_in_failures.c.id.in_(bindparam("ids", expanding=True)))
_COUNT = (
    update(sign_in_failures)
    .where(sign_in_failures.c.id == bindparam("counter"))
    .values(
        failures=case((_OVER, 1), else_=sign_in_failures.c.failures + 1),
        until=case((_OVER, bindparam("latest")), else_=sign_in_failures.c.until),
    )
)


class Failures:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def tallies(self, counters: Sequence[Counter]) -> list[Tally]:
        """Tallies of these counters, whether or not their window is over."""
        rows = await self.database.select(_TALLIES, {"ids": [counter.id for counter in counters]})
        return [_tally(row) for row in rows]

    async def count(self, counters: Sequence[Counter], table: Mapping[Counted, Limit], *, now: int) -> list[Tally]:
        """One more failure in each of these; how they stand then."""
        # In one order, so that two of these at once wait for each other instead of locking each other out.
        ordered = sorted(counters, key=lambda counter: counter.id)
        while True:
            try:
                async with self.database.write() as connection:
                    for counter in ordered:
                        await _count(connection, counter, now, now + table[counter.kind].period)
                    rows = await connection.execute(_TALLIES, {"ids": [counter.id for counter in ordered]})
            except Conflict:
                continue  # another portal began the window in between: now there is a row to count in
            return [_tally(row) for row in rows]

    async def in_force(self, *, now: int) -> list[Tally]:
        """Every window that is not over, the one that ends first first."""
        query = select(sign_in_failures).where(sign_in_failures.c.until > now).order_by(sign_in_failures.c.until)
        async with self.database.read() as connection:
            return [_tally(row) for row in await connection.execute(query)]

    async def forget(self, counters: Sequence[Counter]) -> bool:
        """Begin anew with these. False when there was nothing to forget."""
        if not counters:
            return False
        query = delete(sign_in_failures).where(sign_in_failures.c.id.in_([counter.id for counter in counters]))
        async with self.database.write() as connection:
            return bool((await connection.execute(query)).rowcount)

    async def prune(self, *, now: int) -> None:
        """Remove windows that are over."""
        async with self.database.write() as connection:
            await connection.execute(delete(sign_in_failures).where(sign_in_failures.c.until <= now))


async def _count(connection: Connection, counter: Counter, now: int, latest: int) -> None:
    counted = await connection.execute(_COUNT, {"counter": counter.id, "now": now, "latest": latest})
    if not counted.rowcount:
        await connection.execute(
            insert(sign_in_failures).values(
                id=counter.id,
                kind=counter.kind,
                name=bounded(counter.name, 128),
                address=bounded(counter.address, 64),
                failures=1,
                until=latest,
            )
        )


def _tally(row: AnyRow) -> Tally:
    return Tally(Counter(Counted(row.kind), row.name, row.address), row.failures, row.until)
