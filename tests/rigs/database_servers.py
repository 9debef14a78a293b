"""This worker's PostgreSQL and MariaDB: started by the first test that asks, with the databases of `pupitre db create`.

Tests share a server and its four databases one after the other: `place` empties them
for the next test and puts the file of addresses into its folder.
"""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import update

from pupitre.config import Settings
from pupitre.store.admin import migrate
from pupitre.store.admin.provision import provision
from pupitre.store.schema import DATABASES
from pupitre.store.sql.engine import Database
from tests.rigs.server_processes import SERVERS, DatabaseServer

KINDS = ("sqlite", *SERVERS)


@dataclass(frozen=True)
class Provisioned:
    server: DatabaseServer
    settings: Settings

    def empty(self) -> None:
        asyncio.run(self._empty())

    async def _empty(self) -> None:
        for name, metadata in DATABASES.items():
            database = Database(self.settings.database_url(name), notify_dir=self.settings.notify_dir)
            async with database.write() as connection:
                for table in metadata.sorted_tables:
                    if table.name in {"counter", "epochs", "news"}:
                        first = {"order_key": None} if table.name == "epochs" else {}
                        await connection.execute(update(table).values(value=0, **first))
                    else:
                        await connection.execute(table.delete())
            await database.close()


class Servers:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Provisioned] = {}

    def get(self, kind: str) -> Provisioned:
        if kind not in self._running:
            server = SERVERS[kind]()
            settings = Settings(home=self._folder / kind)
            self._running[kind] = Provisioned(server, settings)
            asyncio.run(provision(settings, server.url))
            migrate.upgrade_all(settings)
        return self._running[kind]

    def place(self, folder: Path, kind: str) -> None:
        """Have the code that takes its settings from ``folder`` use empty databases of this kind."""
        if kind != "sqlite":
            provisioned = self.get(kind)
            provisioned.empty()
            shutil.copy(provisioned.settings.databases_file, folder / "databases.json")

    def stop(self) -> None:
        for provisioned in self._running.values():
            provisioned.server.stop()


@contextmanager
def started(folder: Path) -> Iterator[Servers]:
    servers = Servers(folder)
    try:
        yield servers
    finally:
        servers.stop()
