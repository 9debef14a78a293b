"""Administration of SQLite."""

from typing import Any

from sqlalchemy import Engine, event

from pupitre.store.admin.kinds.base import DatabaseKind


def _begin_ourselves(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 60000")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _prepare(engine: Engine) -> None:
    event.listen(engine, "connect", _begin_ourselves)


SQLITE = DatabaseKind(name="sqlite", driver="sqlite+aiosqlite", lock="BEGIN IMMEDIATE", prepare=_prepare)
