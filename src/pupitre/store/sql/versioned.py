"""Rows that carry the version of their last change, so that readers ask for what is newer than the last they saw.

A row written again as it is keeps its version: nobody is told twice. However many rows are
written, it takes one look and one statement for each `CHUNK` of them.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, bindparam, select, tuple_

from pupitre.store.rows import AnyRow
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.upsert import upsert_rows

CHUNK = 500
"""Keys in one statement: every database takes so many parameters."""


async def put_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], version: int) -> int:
    """Insert or update; how many rows were new or have changed. Only those get ``version``.

    All rows name the same columns. Of two with one key the last stays.
    """
    keys = [column.name for column in table.primary_key.columns]
    latest = {tuple(row[key] for key in keys): row for row in rows}
    held: dict[tuple[Any, ...], AnyRow] = {}
    for some in chunks(list(latest)):
        if len(keys) == 1:
            found = await connection.execute(_by_key(table), {"keys": [key for (key,) in some]})
        else:
            found = await connection.execute(select(table).where(has_key(table, some)))
        for row in found:
            held[tuple(getattr(row, key) for key in keys)] = row
    changed = [row for key, row in latest.items() if _differs(held.get(key), row)]
    for part in range(0, len(changed), CHUNK):
        await upsert_rows(connection, table, [{**row, "version": version} for row in changed[part : part + CHUNK]])
    return len(changed)


@lru_cache
def _by_key(table: Table) -> Select[Any]:
    (key,) = table.primary_key.columns
    return select(table).where(key.in_(bindparam("keys", expanding=True)))


def has_key(table: Table, keys: Collection[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Whether a row's primary key is one of ``keys``; of no more than `CHUNK`."""
    columns = list(table.primary_key.columns)
    if len(columns) == 1:
        return columns[0].in_([value for (value,) in keys])
    return tuple_(*columns).in_(keys)


def chunks(keys: Sequence[tuple[Any, ...]]) -> list[Sequence[tuple[Any, ...]]]:
    return [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]


def _differs(held: AnyRow | None, row: Mapping[str, Any]) -> bool:
    return held is None or any(getattr(held, name) != value for name, value in row.items())
