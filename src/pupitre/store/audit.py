"""The audit log: who asked for what, from where, when, and what came of it. Rows are added and never touched again.

It lives in the database ``commands``, so that a command and its row, an end and its
row, are one transaction each. Whatever a person typed is cut and made printable
before it gets here: a name of a megabyte or with line breaks in it is no way to
fill a disk or to forge a line.
"""

import asyncio
import re
from dataclasses import dataclass, field
from enum import StrEnum

import uuid_utils
from sqlalchemy import ColumnElement, func, insert, or_, select

from pupitre.store.rows import AnyRow
from pupitre.store.schema import audit
from pupitre.store.sql.engine import Database
from pupitre.timings import AUDIT_LOOK, AUDIT_SKEW_MS

CLUSTER = "cluster"
"""The actor of what nobody asked for: what the cluster settled by itself."""
NOBODY = ""
"""The actor of what somebody tried who is not known."""
MAX_DETAIL = 1000
FIRST_PART = 2000
"""Lines of the first part that is looked through; the next ones grow."""
_AFTER = "~"
"""Sorts after everything that an id is made of."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Act(StrEnum):
    """Action that is written down besides commands, whose kind is their action."""

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
    """Text of at most ``length`` characters, all printable: no line break, terminal sequence or half character."""
    cut = text if len(text) <= length else f"{text[: length - 1]}…"
    if cut.isprintable():
        return cut
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in cut)


@dataclass(frozen=True, slots=True)
class Wanted:
    """``text`` is looked for in names, subjects, details, outcomes and addresses; ``actor`` is a user's name or id.

    ``since`` is included and ``until`` is not (Unix ms). Of a ``text`` that is an id, what is about it is found.
    """

    text: str = ""
    actor: str = ""
    action: str = ""
    outcome: str = ""
    since: int | None = None
    until: int | None = None

    @property
    def is_id(self) -> bool:
        return bool(_ID.fullmatch(self.text))

    def conditions(self) -> list[ColumnElement[bool]]:
        """All but that on the text."""
        found: list[ColumnElement[bool]] = []
        if self.actor:
            found.append(or_(audit.c.actor == self.actor, audit.c.actor_name == bounded(self.actor, 64)))
        if self.action:
            found.append(audit.c.action == self.action)
        if self.outcome:
            found.append(audit.c.outcome == self.outcome)
        if self.since is not None:
            found.append(audit.c.at >= self.since)
        if self.until is not None:
            found.append(audit.c.at < self.until)
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """``reached`` is how far back was looked, for the next look; None at the end of the log."""

    entries: list[AuditEntry]
    reached: str | None


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
        """The newest first, however long it takes. ``before`` is the id of the last one already seen."""
        wanted = Wanted(text, actor, action, outcome, since, until)
        entries: list[AuditEntry] = []
        while True:
            found = await self.look(wanted, limit=limit - len(entries), before=before)
            entries += found.entries
            before = found.reached
            if before is None or len(entries) == limit:
                return entries

    async def look(self, wanted: Wanted, *, limit: int, before: str | None = None) -> Found:
        """The newest first, as far back as `AUDIT_LOOK` reaches. ``before`` is where the look before has come to.

        A log of millions is looked through part by part, so that no question takes more than a moment of the
        database; an id is found at once, by an index.
        """
        conditions = wanted.conditions()
        if wanted.is_id:
            conditions.append(or_(audit.c.command == wanted.text, audit.c.subject == wanted.text))
            return await self._last_look(conditions, limit, before)
        if wanted.text:
            conditions.append(_holds(wanted.text))
        if not conditions:
            return await self._last_look(conditions, limit, before)
        top, bottom = await self._ends(wanted)
        if top == "" or bottom == "":
            return Found([], None)
        if top is not None:
            conditions.append(audit.c.id <= top)
            if before is None or before > top:
                before = f"{top}{_AFTER}"
        return await self._look_back(conditions, limit, before, bottom)

    async def _look_back(
        self, conditions: list[ColumnElement[bool]], limit: int, before: str | None, bottom: str | None
    ) -> Found:
        loop = asyncio.get_running_loop()
        end, rows, entries = loop.time() + AUDIT_LOOK, FIRST_PART, list[AuditEntry]()
        while True:
            begun = loop.time()
            part = [audit.c.id < before] if before else []
            step = select(audit.c.id).where(*part).order_by(audit.c.id.desc()).offset(rows).limit(1)
            floor = (await self.database.select(step)).scalar()
            is_last = floor is None or (bottom is not None and floor < bottom)
            if not is_last:
                part.append(audit.c.id >= floor)
            query = select(audit).where(*part, *conditions).order_by(audit.c.id.desc())
            found = await self.database.select(query.limit(limit - len(entries) + 1))
            entries += [_entry(row) for row in found]
            if len(entries) > limit:
                return Found(entries[:limit], entries[limit - 1].id)
            if is_last:
                return Found(entries, None)
            before = str(floor)
            took = loop.time() - begun
            growth = 2 if took < AUDIT_LOOK / 8 else 1
            if loop.time() + took * growth > end:
                return Found(entries, before)
            rows *= growth

    async def _last_look(self, conditions: list[ColumnElement[bool]], limit: int, before: str | None) -> Found:
        query = select(audit).where(*conditions)
        if before:
            query = query.where(audit.c.id < before)
        rows = await self.database.select(query.order_by(audit.c.id.desc()).limit(limit + 1))
        entries = [_entry(row) for row in rows[:limit]]
        return Found(entries, entries[-1].id if len(rows) > limit else None)

    async def _ends(self, wanted: Wanted) -> tuple[str | None, str | None]:
        """Ids between which the wanted times lie, "" for nowhere: ids and times agree within `AUDIT_SKEW_MS`."""
        top: str | None = None
        bottom: str | None = None
        at = audit.c.at
        if wanted.until is not None:
            last = (await self.database.select(select(func.max(at)).where(at < wanted.until))).scalar()
            near = select(func.max(_by_time)).where(at < wanted.until, at >= (last or 0) - AUDIT_SKEW_MS)
            top = "" if last is None else str((await self.database.select(near)).scalar())
        if wanted.since is not None:
            first = (await self.database.select(select(func.min(at)).where(at >= wanted.since))).scalar()
            near = select(func.min(_by_time)).where(at >= wanted.since, at <= (first or 0) + AUDIT_SKEW_MS)
            bottom = "" if first is None else str((await self.database.select(near)).scalar())
        return top, bottom


_by_time = audit.c.id.concat("")
"""An id that no index has, so that PostgreSQL takes the one of the times and does not walk along the ids."""


def _holds(text: str) -> ColumnElement[bool]:
    places = (audit.c.actor_name, audit.c.subject, audit.c.detail, audit.c.outcome, audit.c.origin)
    return or_(audit.c.command == text, *(place.icontains(text, autoescape=True) for place in places))


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
