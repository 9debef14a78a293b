"""Many rows into one table at once, whether they are there or not, in the words that each database has for it.

The rows go as one prepared statement with many sets of values, in one round
trip, and no number of values is too large for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Executable, Table

from pupitre.store.sql.dialect import Connection


async def upsert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert each row, or set the columns it names in the row that has its primary key already.

    All rows name the same columns; of two with one key the last stays. No rows, no statement.
    """
    if not rows:
        return
    # In one order, so that two of these at once wait for each other instead of locking each other out.
    keys = [column.name for column in table.primary_key.columns]
    latest = {tuple(row[key] for key in keys): row for row in rows}
    ordered = [row for _, row in sorted(latest.items())]
    await connection.execute(connection.upsert(table, tuple(rows[0])), ordered)


def insert_or_update(insert: Any, table: Table, names: Sequence[str]) -> Executable:
    """Upsert as PostgreSQL and SQLite write it."""
    keys = [column.name for column in table.primary_key.columns]
    changed = [name for name in names if name not in keys]
    if not changed:
        return insert.on_conflict_do_nothing(index_elements=keys)  # type: ignore[no-any-return]
    new = {name: insert.excluded[name] for name in changed}
    return insert.on_conflict_do_update(index_elements=keys, set_=new)  # type: ignore[no-any-return]
