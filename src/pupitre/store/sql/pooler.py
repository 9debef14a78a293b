"""A pooler between us and PostgreSQL, such as PgBouncer, that gives each transaction another session.

Through it nobody hears a NOTIFY, prepared statements meet others' (or none), and settings of
a session are lost. It is found before anything is written. One that gives each client a
session of its own and passes its settings on is none of our business.
"""

from collections.abc import Mapping
from typing import Any

import asyncpg

from pupitre.errors import SetupError
from pupitre.store.sql.deadline import Deadline
from pupitre.timings import POOLER_LIMIT

TRIES = 3

_MARKS = frozenset({"26000", "42P05"})
"""SQLSTATEs: a prepared statement is not there, or is there already. No session of one's own says so."""


async def refuse_pooler(raw: Any, arguments: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Raises `SetupError` when ``raw`` is no session of our own, or one without our ``settings``.

    ``arguments`` are asyncpg's, for a second connection to the same place.
    """
    where = f"{arguments.get('host', 'localhost')}:{arguments.get('port', 5432)}"
    try:
        with Deadline(POOLER_LIMIT, raw.terminate):
            pid = await raw.fetchval("SELECT pg_backend_pid()")
        # A server names its process when it takes a connection; a pooler names none of the server's.
        if pid == raw.get_server_pid():
            return
        if await _shares_sessions(arguments):
            raise _refused(where, "it gives each transaction another session")
        with Deadline(POOLER_LIMIT, raw.terminate):
            rows = await raw.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", [*settings])
    except asyncpg.PostgresError as error:
        if error.sqlstate in _MARKS:
            raise _refused(where, "it gives each transaction another session") from error
        raise
    lost = sorted(settings.keys() - {str(row["name"]) for row in rows if _same(row, settings)})
    if lost:
        raise _refused(where, f"it does not pass our session's settings on ({', '.join(lost)})")


def refused_by_pooler(error: Exception, arguments: Mapping[str, Any]) -> SetupError | None:
    """Words on a connection that a pooler has refused since it knows none of our settings; None of any other."""
    if getattr(error, "sqlstate", None) != "08P01" or "startup parameter" not in str(error):
        return None
    where = f"{arguments.get('host', 'localhost')}:{arguments.get('port', 5432)}"
    return _refused(where, f"it does not pass our session's settings on ({error})")


def _refused(where: str, why: str) -> SetupError:
    return SetupError(
        f"At {where} is a connection pooler, such as PgBouncer, through which Pupitre does not work: {why}.",
        "Give the address of PostgreSQL itself in databases.json; Pupitre keeps its few connections by itself.",
    )


def _same(row: Any, settings: Mapping[str, str]) -> bool:
    return str(row["setting"]) == settings[row["name"]]


async def _shares_sessions(arguments: Mapping[str, Any]) -> bool:
    """Whether two clients that are both connected meet the same process of the server."""
    first, second = await _connect(arguments), await _connect(arguments)
    try:
        for _ in range(TRIES):
            if await _pid(first) == await _pid(second):
                return True
        return False
    except asyncpg.PostgresError:
        return True  # it takes no transactions at all
    finally:
        first.terminate()
        second.terminate()


async def _connect(arguments: Mapping[str, Any]) -> Any:
    plain = {name: value for name, value in arguments.items() if name not in {"server_settings", "timeout"}}
    with Deadline(POOLER_LIMIT):
        return await asyncpg.connect(**plain, statement_cache_size=0)


async def _pid(raw: Any) -> object:
    with Deadline(POOLER_LIMIT, raw.terminate):
        await raw.execute("BEGIN")
        pid = await raw.fetchval("SELECT pg_backend_pid()")
        await raw.execute("COMMIT")
    return pid
