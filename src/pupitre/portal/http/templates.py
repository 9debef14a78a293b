"""Templates: how a page or a piece of one is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pupitre.config import Settings
from pupitre.domain.bounds import is_shown
from pupitre.domain.command_kinds import order_words
from pupitre.domain.desktop import OPEN_STATES, Desktop
from pupitre.domain.people.access import User, may_manage_hosts, may_manage_users, may_read_audit
from pupitre.domain.people.sign_in import warning
from pupitre.portal import labels
from pupitre.portal.http.assets import Assets
from pupitre.portal.http.paths import here
from pupitre.portal.identity.sessions import Caller
from pupitre.runtime.clock import now_ms


def templates(assets: Assets) -> Jinja2Templates:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": labels.duration,
        "countdown": labels.countdown,
        "is_shown": is_shown,
        "moment": labels.moment,
        "gibibytes": labels.gibibytes,
        "order_words": order_words,
        "outcome_words": labels.outcome_words,
        "action_words": labels.action_words,
        "late_words": labels.late_words,
        "lock_words": labels.lock_words,
    }
    environment.globals |= {
        "assets": assets,
        "may_manage_hosts": may_manage_hosts,
        "may_manage_users": may_manage_users,
        "may_open": may_open,
        "may_read_audit": may_read_audit,
        "steps": steps,
        "state_words": labels.STATE_WORDS,
        "host_words": labels.HOST_WORDS,
        "ended_words": labels.OUTCOME_WORDS,
        "remedies": labels.REMEDIES,
    }
    return Jinja2Templates(env=environment)


def render(
    request: Request,
    name: str,
    context: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page for whoever asks."""
    found: Jinja2Templates = request.app.state.templates
    caller = getattr(request.state, "caller", None)
    user: User | None = caller.user if caller else None
    end = _end_of(request, caller) if caller and caller.browser else None
    whole = {"user": user, "now": now_ms(), "notice": None, "sign_in": end, "here": here(request), **context}
    return found.TemplateResponse(request, name, whole, status, headers)


class SignInEnd(NamedTuple):
    """End of a browser's sign-in, in ms: its end, how long before people are warned, and the last end it may have."""

    ends: int
    warn: int
    latest: int


def _end_of(request: Request, caller: Caller) -> SignInEnd:
    settings: Settings = request.app.state.portal.settings
    return SignInEnd(caller.until, warning(settings.session_ms), caller.since + settings.session_most_ms)


def fragment(request: Request, name: str, context: Mapping[str, Any]) -> str:
    """A piece of a page, for an event."""
    found: Jinja2Templates = request.app.state.templates
    return found.get_template(name).render({"now": now_ms(), **context})


def steps(desktop: Desktop) -> list[tuple[str, str]]:
    """The way to a running desktop: (words, ``done`` | ``now`` | ``next``)."""
    here = labels.STEPS.index(desktop.state)
    return [
        (labels.STEP_WORDS[step], "done" if position < here else "now" if position == here else "next")
        for position, step in enumerate(labels.STEPS)
    ]


def may_open(desktop: Desktop) -> bool:
    return desktop.state in OPEN_STATES
