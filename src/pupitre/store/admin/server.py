"""The server of a database, opened as its administrator."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from pupitre.errors import SetupError, Unavailable
from pupitre.store.admin.kinds import KINDS
from pupitre.store.admin.kinds.base import Server, connected, said_by


@asynccontextmanager
async def open_server(root: URL) -> AsyncIterator[Server]:
    """The server at its administrator's address, for one set-up at a time. Raises `SetupError` and `Unavailable`."""
    name = "mariadb" if root.get_backend_name() == "mysql" else root.get_backend_name()
    kind = KINDS[name].server if name in KINDS else None
    if kind is None:
        raise SetupError(f"There is no server of {root.get_backend_name()}.", "Use postgresql://… or mariadb://…")
    try:
        async with connected(root.set(drivername=kind.driver, database=root.database or kind.first)) as connection:
            server = kind(root, connection)
            await server.lock()
            yield server
    except (DBAPIError, OSError) as error:
        where = root.render_as_string(hide_password=True)
        raise Unavailable(f"{where} does not do what is needed: {said_by(error)}") from error
