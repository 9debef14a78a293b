"""The audit log, for administrators: searched by a plain form, so that an address says what is looked for."""

from datetime import UTC, datetime, tzinfo
from typing import Annotated
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from pupitre.domain.people.username import canonical
from pupitre.portal.context import portal_of
from pupitre.portal.http.roles import Auditor
from pupitre.portal.http.templates import render
from pupitre.portal.labels import ACTION_WORDS, OUTCOME_WORDS
from pupitre.store.audit import Wanted

router = APIRouter()
PAGE = 50
_WRONG_TIME = "Write it as 2026-09-01T08:30."


class Search(BaseModel):
    """Search as it was typed. Times are the clock of ``zone``, which a script fills in; without one it is UTC's."""

    text: Annotated[str, Field(max_length=255)] = ""
    user: Annotated[str, Field(max_length=128)] = ""
    action: Annotated[str, Field(max_length=64)] = ""
    outcome: Annotated[str, Field(max_length=64)] = ""
    since: Annotated[str, Field(max_length=32)] = ""
    until: Annotated[str, Field(max_length=32)] = ""
    zone: Annotated[str, Field(max_length=64)] = ""
    before: Annotated[str, Field(max_length=36)] = ""

    def query(self, **changes: str) -> str:
        """Search as part of an address."""
        fields = self.model_dump() | changes
        return urlencode({name: value for name, value in fields.items() if value})

    @property
    def asks(self) -> bool:
        return any((self.text, self.user, self.action, self.outcome, self.since, self.until))


@router.get("/admin/audit")
async def audit(request: Request, _caller: Auditor, search: Annotated[Search, Query()]) -> Response:
    zone = _zone(search.zone)
    errors: dict[str, str] = {}
    times: dict[str, int | None] = {}
    for name in ("since", "until"):
        try:
            times[name] = _unix_ms(getattr(search, name), zone)
        except ValueError:
            times[name], errors[name] = None, _WRONG_TIME
    wanted = Wanted(
        search.text.strip(),
        canonical(search.user) or search.user.strip(),
        search.action,
        search.outcome,
        times["since"],
        times["until"],
    )
    found = await portal_of(request).audit.look(wanted, limit=PAGE, before=search.before or None)
    context = {
        "search": search,
        "errors": errors,
        "entries": found.entries,
        "older": search.query(before=found.reached) if found.reached else None,
        "newest": search.query(before=""),
        "actions": ACTION_WORDS,
        "outcomes": OUTCOME_WORDS,
    }
    return render(request, "audit.html", context, status=422 if errors else 200)


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def _unix_ms(typed: str, zone: tzinfo) -> int | None:
    """Raises `ValueError` for what is no time."""
    if not typed.strip():
        return None
    moment = datetime.fromisoformat(typed.strip())
    return int((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() * 1000)
