"""Who may do what in which table: what the servers of PostgreSQL and MariaDB hold each process to.

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
    """What ``role`` may do in a table of the database ``name``."""
    allowed = ACCESS.get(role, {}).get(name, frozenset())
    return allowed & EXCEPT.get(table, WRITE)


_HELD = (
    "SELECT grantee, table_name, privilege_type FROM information_schema.table_privileges"
    " WHERE table_schema = current_schema()"
)
_HELD_MARIA = _HELD.replace("current_schema()", "DATABASE()")


async def ensure_grants(connection: AsyncConnection, name: DatabaseName, users: Mapping[DatabaseRole, str]) -> bool:
    """Give each role's user exactly its privileges on every table; True when anything was not so. As the owner."""
    maria = connection.dialect.name != "postgresql"
    held: dict[tuple[str, str], set[str]] = {}
    for grantee, table, privilege in await connection.execute(text(_HELD_MARIA if maria else _HELD)):
        held.setdefault((grantee, table), set()).add(privilege)
    changed = False
    for role, user in users.items():
        grantee = f"'{user}'@'%'" if maria else user
        whom = grantee if maria else f'"{user}"'
        for table in DATABASES[name].tables:
            wanted, has = privileges(role, name, table), held.get((grantee, table), set())
            what = f"`{table}`" if maria else f'"{table}"'
            for verb, to, which in (("GRANT", "TO", wanted - has), ("REVOKE", "FROM", has - wanted)):
                if which:
                    await connection.exec_driver_sql(f"{verb} {', '.join(sorted(which))} ON {what} {to} {whom}")
                    changed = True
    return changed
