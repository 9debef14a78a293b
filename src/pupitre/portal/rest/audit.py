"""``/audit``: who asked for what, from where, when, and what came of it. For administrators."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request

from pupitre.domain.people.username import canonical
from pupitre.portal.context import portal_of
from pupitre.portal.http.roles import Auditor
from pupitre.portal.rest.paging import After, Limit
from pupitre.portal.schemas import AuditOut, Page, audit_out
from pupitre.store.audit import Wanted

router = APIRouter(tags=["audit"])

Words = Annotated[str, Query(max_length=255, description="In names, subjects, details, outcomes or addresses.")]
Word = Annotated[str, Query(max_length=64)]
Moment = Annotated[datetime | None, Query(description="ISO 8601; without an offset it is UTC.")]


@router.get("/audit")
async def entries(
    request: Request,
    _caller: Auditor,
    text: Words = "",
    user: Annotated[str, Query(max_length=128)] = "",
    action: Word = "",
    outcome: Word = "",
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 100,
    after: After = None,
) -> Page[AuditOut]:
    """The newest first. A long log is looked through in parts: a page may be short or empty, and yet have a ``next``.

    ``user`` is a name or an id; ``since`` is included, ``until`` is not.
    """
    wanted = Wanted(text, canonical(user) or user, action, outcome, _unix_ms(since), _unix_ms(until))
    found = await portal_of(request).audit.look(wanted, limit=limit, before=after)
    return Page(items=[audit_out(entry) for entry in found.entries], next=found.reached)


def _unix_ms(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
