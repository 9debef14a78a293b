"""Grants: what each process may do in which table of PostgreSQL and MariaDB.

The owner alone changes the layout. Whoever is not named here may not even connect.
"""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from pupitre.config import DatabaseName, DatabaseRole
from pupitre.store.admin.kinds import KINDS
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


async def ensure_grants(connection: AsyncConnection, name: DatabaseName, users: Mapping[DatabaseRole, str]) -> bool:
    """Give each role's user exactly its privileges on every table; True when anything was not so. As the owner."""
    grants = KINDS[connection.engine.url.get_backend_name()].grants
    if grants is None:
        return False
    held: dict[tuple[str, str], set[str]] = {}
    for user, table, words in await connection.execute(text(grants.held)):
        held.setdefault((user, table), set()).update(words.upper().split(","))
    changed = False
    for role, user in users.items():
        for table in DATABASES[name].tables:
            wanted, has = privileges(role, name, table), held.get((user, table), set())
            for verb, to, which in (("GRANT", "TO", wanted - has), ("REVOKE", "FROM", has - wanted)):
                if which:
                    what = f"{verb} {', '.join(sorted(which))} ON {grants.table(table)} {to} {grants.user(user)}"
                    await connection.execute(text(what))
                    changed = True
    return changed
