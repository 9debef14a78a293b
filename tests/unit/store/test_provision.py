"""`pupitre db create --url`: what it makes, twice and interrupted, who learns the passwords; migrations on a server."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from pupitre.config import Settings
from pupitre.errors import SetupError, Unavailable
from pupitre.store.admin import migrate
from pupitre.store.admin.provision import provision
from pupitre.store.schema import DATABASES
from pupitre.store.sql.engine import Database
from tests.rigs.database_servers import Provisioned

pytestmark = pytest.mark.anyio

DRIVERS = {"postgresql": "postgresql+asyncpg", "mariadb": "mariadb+asyncmy"}
PROGRAM = [sys.executable, "-m", "pupitre", "db"]


async def administer(server: URL, *statements: str) -> None:
    url = server.set(drivername=DRIVERS[server.get_backend_name()], database=server.database or None)
    if server.get_backend_name() == "postgresql":
        url = url.set(database="postgres")
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture
def prefix(each_server: Provisioned) -> Iterator[str]:
    """Databases and users of this test, which leave with it."""
    name = "mine"
    yield name
    url = each_server.server.url
    quote = "`" if url.get_backend_name() == "mariadb" else '"'
    drops = [f"DROP DATABASE IF EXISTS {quote}{name}_{database}{quote}" for database in DATABASES]
    users = [f"{name}_{role}" for role in ("portal", "endpoint", "cluster", "owner")]
    drops += [f"DROP {'USER' if quote == '`' else 'ROLE'} IF EXISTS {user}" for user in users]
    asyncio.run(administer(url, *drops))


async def make(home: Path, server: URL, prefix: str, *, new_passwords: bool = False) -> tuple[list[str], list[str]]:
    report = await provision(Settings(home=home), server, prefix=prefix, new_passwords=new_passwords)
    migrate.upgrade_all(Settings(home=home))
    return report.made, report.there


async def opens(home: Path) -> bool:
    """Whether every address of the file opens its database."""
    for urls in json.loads((home / "databases.json").read_text()).values():
        for url in urls.values():
            database = Database(url, notify_dir=home)
            try:
                async with database.read():
                    pass
            except Unavailable:
                return False
            finally:
                await database.close()
    return True


async def test_twice_changes_nothing(tmp_path: Path, each_server: Provisioned, prefix: str) -> None:
    made, there = await make(tmp_path / "home", each_server.server.url, prefix)
    file = tmp_path / "home/databases.json"
    assert there == []
    assert made == [str(file), *(f"user {prefix}_{role}" for role in ("owner", "portal", "endpoint", "cluster"))] + [
        f"database {prefix}_{name}" for name in DATABASES
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_text()
    assert await make(tmp_path / "home", each_server.server.url, prefix) == ([], made)
    assert file.read_text() == before
    assert await opens(tmp_path / "home")


async def test_what_was_lost_or_changed_is_made_again(tmp_path: Path, each_server: Provisioned, prefix: str) -> None:
    """Also what a run that was interrupted left undone."""
    url = each_server.server.url
    await make(tmp_path / "home", url, prefix)
    maria = url.get_backend_name() == "mariadb"
    await administer(
        url,
        f"DROP DATABASE {prefix}_cluster",
        f"DROP USER {prefix}_cluster" if maria else f"DROP ROLE {prefix}_cluster",
        f"ALTER USER {prefix}_portal IDENTIFIED BY 'other'"
        if maria
        else f"ALTER ROLE {prefix}_portal PASSWORD 'other'",
    )
    assert not await opens(tmp_path / "home")
    made, _ = await make(tmp_path / "home", url, prefix)
    assert made == [f"user {prefix}_cluster", f"database {prefix}_cluster", f"password of {prefix}_portal"]
    assert await opens(tmp_path / "home")


async def test_users_of_somebody_else_are_not_taken(tmp_path: Path, each_server: Provisioned, prefix: str) -> None:
    url = each_server.server.url
    await make(tmp_path / "one", url, prefix)
    with pytest.raises(SetupError, match=r"is on the server already, and .* has no password for it"):
        await make(tmp_path / "two", url, prefix)
    assert not (tmp_path / "two/databases.json").exists()
    assert await opens(tmp_path / "one")
    await make(tmp_path / "two", url, prefix, new_passwords=True)
    assert await opens(tmp_path / "two")
    assert not await opens(tmp_path / "one")


async def test_a_file_about_another_server_is_left_alone(tmp_path: Path, each_server: Provisioned) -> None:
    (tmp_path / "databases.json").write_text('{"owner": {"status": "postgresql://o:secret@elsewhere/x"}}')
    with pytest.raises(SetupError, match="about other databases") as caught:
        await make(tmp_path, each_server.server.url, "mine")
    assert "secret" not in str(caught.value)


async def test_no_password_is_shown_anywhere(tmp_path: Path, each_server: Provisioned, prefix: str) -> None:
    """Not in what it prints, nor in the argument list, the server's log, or an error."""
    url = each_server.server.url
    plain = f"{url.drivername}://{url.username}@{url.host}:{url.port}"
    if url.get_backend_name() == "postgresql":
        await administer(url, "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()")
    else:
        await administer(url, "SET GLOBAL general_log_file = 'general.log'", "SET GLOBAL general_log = 1")
    environment = {**os.environ, "PUPITRE_HOME": str(tmp_path / "home"), "PUPITRE_DATABASE_PASSWORD": str(url.password)}
    command = [*PROGRAM, "create", "--url", plain, "--prefix", prefix]
    shown = ""
    for given in (str(url.password), "wrong", str(url.password)):
        environment["PUPITRE_DATABASE_PASSWORD"] = given
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode == 0) == (given != "wrong"), done.stdout + done.stderr
        shown += done.stdout + done.stderr
    if url.get_backend_name() == "postgresql":
        await administer(url, "ALTER SYSTEM RESET log_statement", "SELECT pg_reload_conf()")
    else:
        await administer(url, "SET GLOBAL general_log = 0")
    logs = each_server.server.log()
    assert "CREATE DATABASE" in logs, "the server's log says nothing, so this would show nothing"
    held = json.loads((tmp_path / "home/databases.json").read_text())
    secrets = {str(make_url(address).password) for urls in held.values() for address in urls.values()}
    assert len(secrets) == 4
    for secret in (*secrets, str(url.password)):
        assert secret not in shown
        assert secret not in logs


async def test_migrations_make_the_tables_that_the_code_names(each_server: Provisioned) -> None:
    def differences(connection: Connection, name: str) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, next(held for key, held in DATABASES.items() if key == name)))

    for name in DATABASES:
        assert migrate.inspect(each_server.settings.database_url(name), partial(differences, name=name)) == []


async def test_two_upgrades_at_once_do_it_once(tmp_path: Path, each_server: Provisioned, prefix: str) -> None:
    await provision(Settings(home=tmp_path / "home"), each_server.server.url, prefix=prefix)
    environment = {**os.environ, "PUPITRE_HOME": str(tmp_path / "home")}
    both = [
        await asyncio.create_subprocess_exec(
            *PROGRAM, "upgrade", "--json", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    changed: list[str] = []
    for process in both:
        said, wrong = await process.communicate()
        assert process.returncode == 0, wrong.decode()
        changed += json.loads(said)["changed"]
    assert sorted(changed) == sorted(DATABASES), "each of them once"
    assert migrate.upgrade_all(Settings(home=tmp_path / "home")) == []
