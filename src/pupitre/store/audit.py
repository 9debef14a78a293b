"""The audit log: who asked for what, from where, when, and what came of it. Rows are added and never touched again.

It lives in the database ``commands``, so that a command and its row, an end and its
row, are one transaction each. Whatever a person typed is cut and made printable
before it gets here: a name of a megabyte or with line breaks in it is no way to
fill a disk or to forge a line.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import uuid_utils
from sqlalchemy import insert, or_, select

from pupitre.store.engine import Database
from pupitre.store.rows import AnyRow
from pupitre.store.schema import audit

CLUSTER = "cluster"
"""The actor of what nobody asked for: what the cluster settled by itself."""
NOBODY = ""
"""The actor of what somebody tried who is not known."""
MAX_DETAIL = 1000


class Act(StrEnum):
    """What is written down besides commands, whose kind is their action."""

    SIGN_IN = "sign_in"
    SIGN_IN_EXTENDED = "sign_in_extended"
    SIGN_OUT = "sign_out"
    SIGN_IN_LOCKED = "sign_in_locked"
    LOCK_LIFTED = "lock_lifted"
    TOKEN_MADE = "token_made"  # noqa: S105
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    USER_ADDED = "user_added"
    USER_REMOVED = "user_removed"
    ROLE_CHANGED = "role_changed"
    DISPLAY_NAME_CHANGED = "display_name_changed"
    CONSOLE_OPENED = "console_opened"
    VIEWER_FILE_GIVEN = "viewer_file_given"


def _new_id() -> str:
    return str(uuid_utils.uuid7())


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row. ``at`` is in Unix milliseconds, ``origin`` the address that asked, empty when no request did.

    ``actor`` is a user's id, `CLUSTER` or `NOBODY`. ``outcome`` is empty for a command that was asked for; its
    outcome is a row of its own. Ids sort by the time they were made.
    """

    at: int
    actor: str
    actor_name: str
    action: str
    subject: str = ""
    origin: str = ""
    outcome: str = ""
    detail: str = ""
    command: str | None = None
    id: str = field(default_factory=_new_id)


APPEND = insert(audit)


def audit_values(entry: AuditEntry) -> dict[str, object]:
    """The row of an entry, for `APPEND` inside the transaction that it tells of."""
    return {
        "id": entry.id,
        "at": entry.at,
        "actor": bounded(entry.actor, 36),
        "actor_name": bounded(entry.actor_name, 64),
        "origin": bounded(entry.origin, 64),
        "action": bounded(entry.action, 32),
        "subject": bounded(entry.subject, 255),
        "command": entry.command,
        "outcome": bounded(entry.outcome, 64),
        "detail": bounded(entry.detail, MAX_DETAIL),
    }


def bounded(text: str, length: int) -> str:
    """At most ``length`` characters, each printable: no line breaks, terminal sequences or halves of characters."""
    cut = text if len(text) <= length else f"{text[: length - 1]}…"
    if cut.isprintable():
        return cut
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in cut)


class AuditLog:
    def __init__(self, database: Database) -> None:
        """``database`` is the database ``commands``."""
        self.database = database

    async def add(self, *entries: AuditEntry) -> None:
        """Write rows of what is no command. A command's rows are written with the command itself."""
        if entries:
            async with self.database.write() as connection:
                await connection.execute(APPEND, [audit_values(entry) for entry in entries])

    async def search(
        self,
        *,
        text: str = "",
        actor: str = "",
        action: str = "",
        outcome: str = "",
        since: int | None = None,
        until: int | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[AuditEntry]:
        """The newest first. ``before`` is the id of the last one already seen.

        ``text`` is looked for in names, subjects, details, outcomes and addresses; ``actor`` is a user's name or id;
        ``since`` is included and ``until`` is not (Unix ms).
        """
        query = select(audit)
        if text:
            places = (audit.c.actor_name, audit.c.subject, audit.c.detail, audit.c.outcome, audit.c.origin)
            query = query.where(
                or_(audit.c.command == text, *(place.icontains(text, autoescape=True) for place in places))
            )
        if actor:
            query = query.where(or_(audit.c.actor == actor, audit.c.actor_name == bounded(actor, 64)))
        if action:
            query = query.where(audit.c.action == action)
        if outcome:
            query = query.where(audit.c.outcome == outcome)
        if since is not None:
            query = query.where(audit.c.at >= since)
        if until is not None:
            query = query.where(audit.c.at < until)
        if before is not None:
            query = query.where(audit.c.id < before)
        async with self.database.read() as connection:
            rows = await connection.execute(query.order_by(audit.c.id.desc()).limit(limit))
        return [_entry(row) for row in rows]


def _entry(row: AnyRow) -> AuditEntry:
    return AuditEntry(
        at=row.at,
        actor=row.actor,
        actor_name=row.actor_name,
        action=row.action,
        subject=row.subject,
        origin=row.origin,
        outcome=row.outcome,
        detail=row.detail,
        command=row.command,
        id=row.id,
    )
