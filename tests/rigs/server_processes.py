"""A PostgreSQL or MariaDB server of our own for a test or a measurement, from Debian's packages.

It listens on a free port of the loopback alone, writes to a temporary folder
with every commit on disk, and is gone with that folder after ``stop``. Both
refuse to run as root; then they run as the user that their package made.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from sqlalchemy import URL

from pupitre.errors import SetupError
from pupitre.up.processes.ports import free_port

PATIENCE = 60.0
"""Seconds that a server may take to start or to stop on a busy machine."""


class DatabaseServer:
    """One server. ``url`` is its administrator's; ``crash`` ends it as a power cut would, ``start`` brings it back."""

    kind: ClassVar[str]
    package: ClassVar[str]
    user: ClassVar[str]
    administrator: ClassVar[str]

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._settings = dict(settings or {})
        self._as_user: str | None = self.user if os.geteuid() == 0 else None
        base = _base(as_another=self._as_user is not None)
        self._folder = Path(tempfile.mkdtemp(prefix=f"pupitre-{self.kind}-", dir=base))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._groups: list[str | int] | None = [] if self._as_user else None
        self._secret = secrets.token_urlsafe(16)
        self.port = free_port()
        self.url = URL.create(self.kind, self.administrator, self._secret, "127.0.0.1", self.port)
        try:
            if self._as_user:
                account = pwd.getpwnam(self._as_user)
                os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._make()
            self.start()
        except BaseException as error:
            log = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
            self._remove()
            if isinstance(error, KeyError | OSError | subprocess.CalledProcessError):
                said = str(getattr(error, "stderr", "") or error)
                raise SetupError(
                    f"{self.kind} did not start: {said} {log}", f"Run: apt-get install {self.package}"
                ) from error
            raise

    def _make(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Returns when it takes connections; at once when it does."""
        raise NotImplementedError

    def crash(self) -> None:
        """Without any good-bye to disk or clients."""
        raise NotImplementedError

    def pid(self) -> int:
        """Process id of the server's first process, while it runs."""
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def log(self) -> str:
        """All that it has written for people."""
        return "".join(path.read_text(errors="replace") for path in (self._log, *self._data.glob("*.log")))

    def stop(self) -> None:
        """Orderly, and for good."""
        try:
            self._end()
        finally:
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *command: str | Path) -> None:
        subprocess.run(
            [str(word) for word in command], check=True, cwd=self._folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE, env=_ENVIRONMENT,
            user=self._as_user, group=self._as_user, extra_groups=self._groups,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class PostgresServer(DatabaseServer):
    kind, package, user, administrator = "postgresql", "postgresql", "postgres", "root"

    _up = False

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text(self._secret)
        self._run(
            _postgres("initdb"), "-D", self._data, "-U", self.administrator, "--auth=scram-sha-256",
            f"--pwfile={password}", "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8", "--no-instructions",
        )  # fmt: skip
        password.unlink()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": "90",
            **self._settings,
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self) -> None:
        if not self._up:
            self._control("start", "-l", str(self._log))
            self._up = True

    def crash(self) -> None:
        self._control("stop", "-m", "immediate")
        self._up = False

    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def _end(self) -> None:
        if self._up:
            self._control("stop", "-m", "fast")
            self._up = False

    def _control(self, action: str, *options: str) -> None:
        # Its own output goes nowhere: the server inherits it and would hold a pipe open.
        command = [str(_postgres("pg_ctl")), action, "-D", str(self._data), "-w", "-t", str(int(PATIENCE)), *options]
        subprocess.run(
            command, check=True, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=PATIENCE * 2, env=_ENVIRONMENT,
            user=self._as_user, group=self._as_user, extra_groups=self._groups,
        )  # fmt: skip


class MariaServer(DatabaseServer):
    kind, package, user, administrator = "mariadb", "mariadb-server", "mysql", "root"

    def _make(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "mariadb-install-db", "--no-defaults", f"--datadir={self._data}", "--skip-test-db",
            "--auth-root-authentication-method=normal", "--innodb-log-file-size=16M", f"--tmpdir={self._folder}",
        )  # fmt: skip
        first = self._folder / "first.sql"
        statements = (
            "DELETE FROM mysql.global_priv WHERE User IN ('', 'root')",
            "FLUSH PRIVILEGES",
            f"CREATE USER 'root'@'%' IDENTIFIED BY '{self._secret}'",
            "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION",
        )
        first.write_text(";\n".join((*statements, "")))
        self._launch(f"--init-file={first}")
        first.unlink()

    def start(self) -> None:
        if self._process is None:
            self._launch()

    def _launch(self, *options: str) -> None:
        settings = {
            "bind-address": "127.0.0.1",
            "port": str(self.port),
            "socket": "server.sock",
            "tmpdir": str(self._folder),
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "16M",
            "innodb-flush-log-at-trx-commit": "1",
            "max-connections": "120",
            **self._settings,
        }
        command = [str(_mariadb()), "--no-defaults", f"--datadir={self._data}", "--skip-name-resolve"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=_ENVIRONMENT,
                user=self._as_user, group=self._as_user, extra_groups=self._groups,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise SetupError("MariaDB did not start.", f"Its log ends: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def crash(self) -> None:
        self._signal(signal.SIGKILL)

    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def _end(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


SERVERS: dict[str, type[DatabaseServer]] = {server.kind: server for server in (PostgresServer, MariaServer)}

_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    # Only marks, for who clears up after a run that was killed.
    "STARTED_FROM_TMPDIR": tempfile.gettempdir(),
    "STARTED_BY": os.environ.get("STARTED_BY", ""),
}


def _postgres(program: str) -> Path:
    """The newest PostgreSQL's; Debian keeps each version in a folder of its own."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{program}"),
        key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))],
    )
    if not found:
        raise FileNotFoundError(f"There is no {program}.")
    return found[-1]


def _mariadb() -> Path:
    return Path(shutil.which("mariadbd", path=_ENVIRONMENT["PATH"]) or "/usr/sbin/mariadbd")


def _base(*, as_another: bool) -> Path:
    """The folder for temporary files, or the usual one where another user could not reach it."""
    chosen = Path(tempfile.gettempdir())
    reachable = all(folder.stat().st_mode & 0o001 for folder in (chosen, *chosen.parents))
    return chosen if reachable or not as_another else Path("/var/tmp")


def _answers(port: int) -> bool:
    """MariaDB opens its port when its init file has run; then it greets at once."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return bool(connection.recv(1))
    except OSError:
        return False
