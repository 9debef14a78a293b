"""Grants: what each process may do in which table of PostgreSQL and MariaDB.

The owner alone changes the layout. Whoever is not named here may not even connect.
"""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from pupitre.config import DatabaseName, DatabaseRole
from pupitre.store.schema import DATABASES

READ = frozenset({"SELECT"})
WRITE = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
APPEND = frozenset({"SELECT", "INSERT"})

ACCESS: Mapping[DatabaseRole, Mapping[DatabaseName, frozenset[str]]] = {
    "portal": {"accounts": WRITE, "commands": WRITE, "status": READ},
    "endpoint": {"commands": WRITE, "status": WRITE},
    "cluster": {"cluster": WRITE},
}
EXCEPT: Mapping[str, frozenset[str]] = {"audit": APPEND}
"""Tables in which even who may write may do only this."""


def privileges(role: DatabaseRole, name: DatabaseName, table: str) -> frozenset[str]:
    """Privileges of ``role`` in each table of the database ``name``."""
    allowed = ACCESS.get(role, {}).get(name, frozenset())
    return allowed & EXCEPT.get(table, WRITE)


_HELD = (
    "SELECT grantee, table_name, privilege_type FROM information_schema.table_privileges"
    " WHERE table_schema = current_schema()"
)
_HELD_MARIA = "SELECT user, table_name, table_priv FROM mysql.tables_priv WHERE db = DATABASE() AND host = '%'"


async def ensure_grants(connection: AsyncConnection, name: DatabaseName, users: Mapping[DatabaseRole, str]) -> bool:
    """Give each role's user exactly its privileges on every table; True when anything was not so. As the owner."""
    maria = connection.dialect.name != "postgresql"
    held: dict[tuple[str, str], set[str]] = {}
    for user, table, words in await connection.execute(text(_HELD_MARIA if maria else _HELD)):
        held.setdefault((user, table), set()).update(words.upper().split(","))
    changed = False
    for role, user in users.items():
        whom = f"'{user}'@'%'" if maria else f'"{user}"'
        for table in DATABASES[name].tables:
            wanted, has = privileges(role, name, table), held.get((user, table), set())
            what = f"`{table}`" if maria else f'"{table}"'
            for verb, to, which in (("GRANT", "TO", wanted - has), ("REVOKE", "FROM", has - wanted)):
                if which:
                    await connection.execute(text(f"{verb} {', '.join(sorted(which))} ON {what} {to} {whom}"))
                    changed = True
    return changed
