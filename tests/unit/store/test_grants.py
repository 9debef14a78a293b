"""Each role may do what it needs, and the server refuses it everything else."""

import re

import pytest
from sqlalchemy import make_url, text

from pupitre.config import DatabaseName, DatabaseRole
from pupitre.errors import Unavailable
from pupitre.store.schema import DATABASES
from pupitre.store.sql.engine import Database
from tests.rigs.database_servers import Provisioned

ROLES: tuple[DatabaseRole, ...] = ("portal", "endpoint", "cluster")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("role", ROLES),
]

READ, APPEND, WRITE = "select", "select insert", "select insert update delete"
ALLOWED: dict[DatabaseRole, dict[DatabaseName, str]] = {
    "portal": {"accounts": WRITE, "commands": WRITE, "status": READ},
    "endpoint": {"commands": WRITE, "status": WRITE},
    "cluster": {"cluster": WRITE},
}
"""What is not here is refused. In ``audit`` even who may write may only add."""

STATEMENTS = {
    "select": "SELECT * FROM {table} WHERE 1 = 0",
    "insert": "INSERT INTO {table} SELECT * FROM {table} WHERE 1 = 0",
    "update": "UPDATE {table} SET {column} = {column} WHERE 1 = 0",
    "delete": "DELETE FROM {table} WHERE 1 = 0",
    "truncate": "TRUNCATE TABLE {table}",
    "alter": "ALTER TABLE {table} ADD COLUMN extra INTEGER",
    "index": "CREATE INDEX extra ON {table} ({column})",
    "drop": "DROP TABLE {table}",
    "create": "CREATE TABLE {table}_extra (id INTEGER)",
}
REFUSED = r"permission denied|must be owner|denied to user"
NO_ENTRY = r"permission denied for database|Access denied for user"


async def test_each_statement_is_allowed_or_refused_by_the_server(each_server: Provisioned, role: DatabaseRole) -> None:
    settings = each_server.settings
    done: dict[str, str] = {}
    expected: dict[str, str] = {}
    for name, allowed in ALLOWED[role].items():
        database = Database(settings.database_url(name, role), notify_dir=settings.notify_dir)
        for table in DATABASES[name].sorted_tables:
            where = f"{name}.{table.name}"
            expected[where] = APPEND if table.name == "audit" else allowed
            passed = [
                verb
                for verb, statement in STATEMENTS.items()
                if await passes(database, statement.format(table=table.name, column=next(iter(table.columns)).name))
            ]
            done[where] = " ".join(passed)
        await database.close()
    assert done == expected


async def test_nobody_enters_a_database_that_is_not_theirs(each_server: Provisioned, role: DatabaseRole) -> None:
    settings = each_server.settings
    own = make_url(next(iter((settings.database_urls() or {})[role].values())))
    for name in DATABASES:
        if name in ALLOWED[role]:
            continue
        other = make_url(settings.database_url(name, "owner")).database
        url = own.set(database=other).render_as_string(hide_password=False)
        database = Database(url, notify_dir=settings.notify_dir)
        with pytest.raises(Unavailable, match=NO_ENTRY):
            async with database.read():
                pass
        await database.close()


async def passes(database: Database, statement: str) -> bool:
    """Raises whatever is no refusal of the server's."""
    try:
        async with database.write() as connection:
            await connection.execute(text(statement))
    except Unavailable as error:
        if not re.search(REFUSED, str(error)):
            raise
        return False
    return True
