"""The database ``accounts``: users and their sign-ins. Only the portal opens it.

A sign-in that is ended leaves a word behind, in the same transaction, until whoever
watches a screen by it has been shown out (see `pupitre.store.revocations`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update

from pupitre.domain.people.access import Role, User
from pupitre.domain.people.sign_in import REASON_KEPT
from pupitre.domain.people.username import canonical
from pupitre.errors import Conflict
from pupitre.store.revocations import Revocation
from pupitre.store.rows import AnyRow
from pupitre.store.schema import accounts_ended, sessions, users
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database
from pupitre.store.sql.upsert import upsert_rows


class SessionKind(StrEnum):
    COOKIE = "cookie"
    BEARER = "bearer"


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in. ``token_hash`` is SHA-256 in hex; times in Unix ms."""

    token_hash: str
    user: User
    kind: SessionKind
    expires: int
    created: int


SESSIONS = "sessions"
"""What wakes every portal when sign-ins or tokens have ended."""


class Accounts:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def add_user(self, user: User, password_hash: str, *, now: int) -> None:
        """Raises `Conflict` when the name is taken."""
        try:
            async with self.database.write() as connection:
                await connection.execute(
                    insert(users).values(
                        id=user.id,
                        name=user.name,
                        role=user.role,
                        password_hash=password_hash,
                        created=now,
                        display_name=user.display_name,
                    )
                )
        except Conflict as error:
            raise Conflict(f"There is already a user named {user.name}.") from error

    async def set_password(self, user_id: str, password_hash: str) -> None:
        """Change the password and end every session of the user."""
        async with self.database.write(SESSIONS) as connection:
            await connection.execute(update(users).where(users.c.id == user_id).values(password_hash=password_hash))
            await _end(connection, sessions.c.user_id == user_id)

    async def set_role(self, user_id: str, role: Role) -> None:
        """Change what the user may do and end every session of theirs."""
        async with self.database.write(SESSIONS) as connection:
            await connection.execute(update(users).where(users.c.id == user_id).values(role=role))
            await _end(connection, sessions.c.user_id == user_id)

    async def set_display_name(self, user_id: str, display_name: str) -> None:
        async with self.database.write(SESSIONS) as connection:
            await connection.execute(update(users).where(users.c.id == user_id).values(display_name=display_name))

    async def remove_user(self, user_id: str) -> None:
        async with self.database.write(SESSIONS) as connection:
            await _end(connection, sessions.c.user_id == user_id)
            await connection.execute(delete(users).where(users.c.id == user_id))

    async def user_named(self, typed: str) -> tuple[User, str] | None:
        """The user whose name this is, however it was typed, and the password hash."""
        name = canonical(typed)
        if name is None:
            return None
        async with self.database.read() as connection:
            row = (await connection.execute(select(users).where(users.c.name == name))).one_or_none()
        return (_user(row), row.password_hash) if row else None

    async def users(self) -> list[User]:
        async with self.database.read() as connection:
            return [_user(row) for row in await connection.execute(select(users).order_by(users.c.name))]

    async def open_session(self, token_hash: str, user_id: str, kind: SessionKind, *, now: int, expires: int) -> None:
        async with self.database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.expires <= now - REASON_KEPT))
            await connection.execute(
                insert(sessions).values(token_hash=token_hash, user_id=user_id, kind=kind, created=now, expires=expires)
            )

    async def extend_session(self, token_hash: str, expires: int, *, now: int) -> bool:
        """A later end for a live sign-in. False when it has ended."""
        live = (sessions.c.token_hash == token_hash, sessions.c.expires > now)
        async with self.database.write(SESSIONS) as connection:
            changed = await connection.execute(update(sessions).where(*live).values(expires=expires))
        return bool(changed.rowcount)

    async def run_out(self, token_hash: str, *, now: int) -> int | None:
        """Length (ms) of a sign-in that ended by itself within the last day; None of others."""
        query = select(sessions.c.created, sessions.c.expires).where(
            sessions.c.token_hash == token_hash, sessions.c.expires <= now
        )
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return row.expires - row.created if row else None

    async def session(self, token_hash: str, *, now: int) -> Session | None:
        """The live session with this token."""
        return (await self.live([token_hash], now=now)).get(token_hash)

    async def live(self, token_hashes: Collection[str], *, now: int) -> dict[str, Session]:
        """Those of these sessions that have not ended, by the hash of their token."""
        rows = await self.database.select(_LIVE, {"tokens": list(token_hashes), "now": now})
        return {row.token_hash: _session(row) for row in rows}

    async def sessions_of(self, user_id: str, *, now: int) -> list[Session]:
        """The user's live sign-ins and tokens, the one that ends first first."""
        query = _SESSIONS.where(users.c.id == user_id, sessions.c.expires > now).order_by(sessions.c.expires)
        async with self.database.read() as connection:
            return [_session(row) for row in await connection.execute(query)]

    async def close_session(self, token_hash: str, *, watched: bool = True) -> bool:
        """False when there was none. ``watched`` is False for one that opened no screen."""
        async with self.database.write(SESSIONS) as connection:
            return bool(await _end(connection, sessions.c.token_hash == token_hash, watched=watched))

    async def revocations(self) -> list[Revocation]:
        """Sign-ins that were ended and are not yet passed on."""
        async with self.database.read() as connection:
            return [Revocation(*row) for row in await connection.execute(select(accounts_ended))]

    async def forget_revocations(self, token_hashes: Collection[str]) -> None:
        """These are written down in the commands database."""
        async with self.database.write() as connection:
            await connection.execute(delete(accounts_ended).where(accounts_ended.c.token_hash.in_(token_hashes)))


async def _end(connection: Connection, which: ColumnElement[bool], *, watched: bool = True) -> int:
    """End these sign-ins, and say so; how many there were."""
    found = await connection.execute(select(sessions.c.token_hash, sessions.c.expires).where(which).with_for_update())
    ended = [{"token_hash": row.token_hash, "until": row.expires} for row in found]
    if watched:
        await upsert_rows(connection, accounts_ended, ended)
    await connection.execute(delete(sessions).where(sessions.c.token_hash.in_([end["token_hash"] for end in ended])))
    return len(ended)


_SESSIONS = select(
    users.c.id,
    users.c.name,
    users.c.role,
    users.c.display_name,
    sessions.c.token_hash,
    sessions.c.kind,
    sessions.c.expires,
    sessions.c.created,
).join(sessions, sessions.c.user_id == users.c.id)

_LIVE = _SESSIONS.where(
    sessions.c.token_hash.in_(bindparam("tokens", expanding=True)), sessions.c.expires > bindparam("now")
)


def _session(row: AnyRow) -> Session:
    return Session(row.token_hash, _user(row), SessionKind(row.kind), row.expires, row.created)


def _user(row: AnyRow) -> User:
    return User(row.id, row.name, Role(row.role), row.display_name)
