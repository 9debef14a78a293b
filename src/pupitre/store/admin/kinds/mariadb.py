"""Administration of MariaDB."""

import hashlib
import logging
from collections.abc import Sequence

from sqlalchemy import Engine

from pupitre.store.admin.kinds.base import DatabaseKind, Grants, Server


class MariaDBServer(Server):
    kind, driver, first, port = "mariadb", "mariadb+asyncmy", None, 3306

    async def lock(self) -> None:
        await self._do("SELECT GET_LOCK('pupitre', 600)")

    async def has_user(self, user: str) -> bool:
        return await self._found("SELECT 1 FROM mysql.user WHERE User = :name AND Host = '%'", name=user)

    async def create_user(self, user: str, password: str) -> None:
        await self._do(f"CREATE USER '{user}'@'%%' IDENTIFIED BY PASSWORD '{native(password)}'")

    async def set_password(self, user: str, password: str) -> None:
        await self._do(f"ALTER USER '{user}'@'%%' IDENTIFIED BY PASSWORD '{native(password)}'")

    async def has_database(self, database: str) -> bool:
        return await self._found("SELECT 1 FROM information_schema.schemata WHERE schema_name = :name", name=database)

    async def create_database(self, database: str, *, owner: str) -> None:
        # By code point, as SQLite and PostgreSQL sort and compare.
        await self._do(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin")

    async def admit(self, database: str, *, owner: str, users: Sequence[str]) -> None:
        # A user enters by its privileges on tables; in the name of a database _ would stand for any letter.
        escaped = database.replace("_", "\\_")
        await self._do(f"GRANT ALL ON `{escaped}`.* TO '{owner}'@'%%' WITH GRANT OPTION")
        await self._do(f"GRANT SELECT ON mysql.tables_priv TO '{owner}'@'%%'")  # to see what it has granted


def native(password: str) -> str:
    """Hash that MariaDB keeps of a password (mysql_native_password); safe for random ones, as ours are."""
    inner = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return "*" + hashlib.sha1(inner, usedforsecurity=False).hexdigest().upper()


def _quiet(engine: Engine) -> None:
    """Its driver's notes on the names of primary keys help nobody."""
    logging.getLogger("asyncmy").setLevel(logging.ERROR)


MARIADB = DatabaseKind(
    name=MariaDBServer.kind,
    driver=MariaDBServer.driver,
    lock="SELECT GET_LOCK(CONCAT('pupitre.', DATABASE()), 3600)",
    server=MariaDBServer,
    grants=Grants(
        held="SELECT user, table_name, table_priv FROM mysql.tables_priv WHERE db = DATABASE() AND host = '%'",
        user=lambda name: f"'{name}'@'%'",
        table=lambda name: f"`{name}`",
    ),
    prepare=_quiet,
)
