"""PgBouncer between us and PostgreSQL: found at the start, in one sentence with the remedy; Debian's package."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from pupitre.errors import SetupError
from pupitre.store.admin import migrate
from pupitre.store.commands import Commands
from pupitre.store.sql.engine import Database
from pupitre.up.processes.ports import free_port
from tests.rigs import databases
from tests.rigs.database_servers import Provisioned, Servers

pytestmark = pytest.mark.anyio

OURS = "jit,enable_seqscan,lock_timeout,statement_timeout,idle_in_transaction_session_timeout,synchronous_commit"


@pytest.fixture
def provisioned(tmp_path: Path, servers: Servers) -> Provisioned:
    servers.place(tmp_path, "postgresql")
    return servers.get("postgresql")


@contextmanager
def pgbouncer(server: URL, users: list[URL], mode: str, ignored: str = "") -> Iterator[int]:
    """PgBouncer before ``server``; its port. As root it runs as another user, as PgBouncer wants it."""
    folder = Path("/var/tmp") / f"pupitre-pgbouncer-{os.getpid()}-{free_port()}"
    folder.mkdir()
    port, account = free_port(), pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    (folder / "users").write_text("".join(f'"{one.username}" "{one.password}"\n' for one in users))
    (folder / "ini").write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users\npool_mode = {mode}\n"
        f"ignore_startup_parameters = extra_float_digits{',' if ignored else ''}{ignored}\n"
    )
    if account:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if account else {}
    process = subprocess.Popen(
        ["/usr/sbin/pgbouncer", folder / "ini"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, **as_user,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "process up" not in (line := process.stderr.readline()):
            assert line, "pgbouncer ended"
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)
        shutil.rmtree(folder)


def through(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("mode", "ignored", "why"),
    [
        ("transaction", OURS, "another session"),
        ("statement", OURS, "pooler"),
        ("transaction", "", "startup parameter"),
        ("session", "", "startup parameter"),
        ("session", OURS, "enable_seqscan, jit"),
    ],
)
async def test_pgbouncer_is_refused_with_the_remedy(
    tmp_path: Path, provisioned: Provisioned, mode: str, ignored: str, why: str
) -> None:
    url = databases.url(tmp_path, "commands", "portal")
    with pgbouncer(provisioned.server.url, [make_url(url)], mode, ignored) as port:
        database = Database(through(url, port), notify_dir=tmp_path / "notify")
        async with databases.closing(database):
            with pytest.raises(SetupError, match=why) as caught:
                await Commands(database).version()
    assert "PostgreSQL itself" in str(caught.value)
    assert str(port) in str(caught.value)


async def test_postgresql_itself_is_no_pooler(tmp_path: Path, provisioned: Provisioned) -> None:
    async with databases.database(tmp_path, "commands", "portal") as database:
        assert await Commands(database).version() == 0


def test_upgrade_through_pgbouncer_is_refused(tmp_path: Path, provisioned: Provisioned) -> None:
    url = databases.url(tmp_path, "commands", "owner")
    with (
        pgbouncer(provisioned.server.url, [make_url(url)], "transaction", OURS) as port,
        pytest.raises(SetupError, match="PgBouncer"),
    ):
        migrate.upgrade("commands", through(url, port))
