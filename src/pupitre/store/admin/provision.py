"""Databases, users and grants on a server of PostgreSQL or MariaDB, and the file with each role's addresses.

The file is written before the first user is made, so that whatever is interrupted
can be run again: a user whose password the file has is there to stay, a user of
whom it knows nothing belongs to somebody else. The servers get passwords as hashes
only, so that none is in their logs.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, make_url

from pupitre.config import DatabaseName, DatabaseRole, Settings
from pupitre.errors import SetupError
from pupitre.store.admin.grants import ACCESS
from pupitre.store.admin.kinds.base import Server
from pupitre.store.admin.server import open_server
from pupitre.store.schema import DATABASES

PREFIX = re.compile(r"[a-z][a-z0-9_]{0,20}")
ROLES: tuple[DatabaseRole, ...] = ("owner", *ACCESS)

Addresses = dict[str, dict[str, str]]


@dataclass(slots=True)
class Report:
    """Report of what was made, and of what was there already; in words."""

    made: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)

    def note(self, what: str, made: bool) -> None:
        (self.made if made else self.there).append(what)


def user_of(prefix: str, role: DatabaseRole) -> str:
    return f"{prefix}_{role}"


def database_of(prefix: str, name: DatabaseName) -> str:
    return f"{prefix}_{name}"


async def provision(settings: Settings, root: URL, *, prefix: str = "pupitre", new_passwords: bool = False) -> Report:
    """Make what is missing on the server of ``root``, its administrator's address. May be repeated.

    ``new_passwords`` takes over users of whom the file of addresses knows nothing.
    Raises `SetupError`, and `Unavailable` when the server does not answer.
    """
    if not PREFIX.fullmatch(prefix):
        raise SetupError(f"{prefix!r} is no prefix.", "Use small letters, digits and _, at most 21, a letter first.")
    report = Report()
    path = settings.databases_file
    async with open_server(root) as server:
        held = settings.database_urls() if path.exists() else None
        users = {role: user_of(prefix, role) for role in ROLES}
        present = {role: await server.has_user(user) for role, user in users.items()}
        addresses = _addresses(server, prefix, held, path)
        for role in ROLES:
            if present[role] and role not in (held or {}) and not new_passwords:
                raise SetupError(
                    f"The user {users[role]} is on the server already, and {path} has no password for it.",
                    f"Copy {path.name} from the machine that made it, choose another --prefix,"
                    " or give it a new password with --new-passwords.",
                )
        _write(path, addresses)
        report.note(str(path), addresses != held)
        for role, user in users.items():
            if not present[role]:
                address = make_url(next(iter(addresses[role].values())))
                await server.create_user(user, str(address.password))
            report.note(f"user {user}", not present[role])
        for name in DATABASES:
            await _database(server, prefix, name, report)
        for role, user in users.items():
            address = make_url(next(iter(addresses[role].values())))
            if not await server.signs_in(address):
                await server.set_password(user, str(address.password))
                report.note(f"password of {user}", True)
    return report


async def _database(server: Server, prefix: str, name: DatabaseName, report: Report) -> None:
    database = database_of(prefix, name)
    made = not await server.has_database(database)
    if made:
        await server.create_database(database, owner=user_of(prefix, "owner"))
    report.note(f"database {database}", made)
    users = [user_of(prefix, role) for role, databases in ACCESS.items() if name in databases]
    await server.admit(database, owner=user_of(prefix, "owner"), users=users)


def _addresses(server: Server, prefix: str, held: Addresses | None, path: Path) -> Addresses:
    """Each role's addresses; those in the file stay as they are."""
    addresses: Addresses = {role: dict(urls) for role, urls in (held or {}).items()}
    for role in ROLES:
        names = list(DATABASES) if role == "owner" else list(ACCESS[role])
        password = secrets.token_urlsafe(24)
        for url in addresses.get(role, {}).values():
            known = make_url(url)
            if not server.is_at(known) or known.username != user_of(prefix, role):
                raise SetupError(
                    f"{path} is about other databases: {known.render_as_string(hide_password=True)}.",
                    "Move it away, or choose another file with PUPITRE_DATABASES.",
                )
            password = str(known.password)
        for name in names:
            address = server.address(user_of(prefix, role), password, database_of(prefix, name))
            addresses.setdefault(role, {}).setdefault(name, address.render_as_string(hide_password=False))
    return addresses


def _write(path: Path, addresses: Mapping[str, Mapping[str, str]]) -> None:
    """Write a file that only this user can read, whole or not at all."""
    text = json.dumps(addresses, indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        path.chmod(0o600)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
