"""Administration of PostgreSQL."""

import base64
import hashlib
import hmac
import os
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from pupitre.store.admin.kinds.base import DatabaseKind, Grants, Server, connected
from pupitre.store.sql.pooler import refuse_pooler

ITERATIONS = 4096
"""Of SCRAM-SHA-256, as PostgreSQL itself takes; the passwords are random."""


class PostgresServer(Server):
    kind, driver, first, port = "postgresql", "postgresql+asyncpg", "postgres", 5432

    async def lock(self) -> None:
        await self._do("SELECT pg_advisory_lock(7074169)")

    async def has_user(self, user: str) -> bool:
        return await self._found("SELECT 1 FROM pg_roles WHERE rolname = :name", name=user)

    async def create_user(self, user: str, password: str) -> None:
        await self._do(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{scram(password)}'")

    async def set_password(self, user: str, password: str) -> None:
        await self._do(f"ALTER ROLE \"{user}\" LOGIN PASSWORD '{scram(password)}'")

    async def has_database(self, database: str) -> bool:
        return await self._found("SELECT 1 FROM pg_database WHERE datname = :name", name=database)

    async def create_database(self, database: str, *, owner: str) -> None:
        if not await self._found("SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper"):
            # Who is no superuser can make a database only for a role that it belongs to.
            await self._do(f'GRANT "{owner}" TO CURRENT_USER')
        # By code point, as SQLite and MariaDB sort and compare.
        await self._do(
            f'CREATE DATABASE "{database}" OWNER "{owner}" TEMPLATE template0'
            " ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )

    async def admit(self, database: str, *, owner: str, users: Sequence[str]) -> None:
        everyone = ", ".join(f'"{user}"' for user in users)
        async with connected(self._root.set(drivername=self.driver, database=database)) as inside:
            for statement in (
                f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC',
                f'GRANT CONNECT ON DATABASE "{database}" TO {everyone}',
                "REVOKE ALL ON SCHEMA public FROM PUBLIC",
                f'GRANT ALL ON SCHEMA public TO "{owner}"',
                f"GRANT USAGE ON SCHEMA public TO {everyone}",
            ):
                await inside.exec_driver_sql(statement)


def scram(password: str) -> str:
    """Verifier that PostgreSQL keeps of a password (RFC 5803)."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [base64.b64encode(word).decode() for word in (salt, client, server)]
    return f"SCRAM-SHA-256${ITERATIONS}:{words[0]}${words[1]}:{words[2]}"


async def _refuse_pooler(connection: AsyncConnection) -> None:
    engine = connection.engine
    _, arguments = engine.dialect.create_connect_args(engine.url)
    await refuse_pooler((await connection.get_raw_connection()).driver_connection, arguments, {})


POSTGRESQL = DatabaseKind(
    name=PostgresServer.kind,
    driver=PostgresServer.driver,
    lock="SELECT pg_advisory_xact_lock(7074170)",
    server=PostgresServer,
    grants=Grants(
        held="SELECT grantee, table_name, privilege_type FROM information_schema.table_privileges"
        " WHERE table_schema = current_schema()",
        user=lambda name: f'"{name}"',
        table=lambda name: f'"{name}"',
    ),
    check=_refuse_pooler,
)
