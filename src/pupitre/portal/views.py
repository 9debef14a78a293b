"""Templates: how a page or a piece of one is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pupitre.clock import now_ms
from pupitre.config import Settings
from pupitre.domain.access import User, may_manage_hosts, may_manage_users, may_read_audit
from pupitre.domain.bounds import is_shown
from pupitre.domain.desktop import OPEN_STATES, Desktop
from pupitre.domain.sign_in import warning
from pupitre.portal import words
from pupitre.portal.assets import Assets
from pupitre.portal.paths import here
from pupitre.portal.sessions import Caller


def templates(assets: Assets) -> Jinja2Templates:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": words.duration,
        "countdown": words.countdown,
        "is_shown": is_shown,
        "moment": words.moment,
        "gibibytes": words.gibibytes,
        "order_words": words.order_words,
        "outcome_words": words.outcome_words,
        "action_words": words.action_words,
        "late_words": words.late_words,
        "lock_words": words.lock_words,
    }
    environment.globals |= {
        "assets": assets,
        "may_manage_hosts": may_manage_hosts,
        "may_manage_users": may_manage_users,
        "may_open": may_open,
        "may_read_audit": may_read_audit,
        "steps": steps,
        "state_words": words.STATE_WORDS,
        "host_words": words.HOST_WORDS,
        "ended_words": words.OUTCOME_WORDS,
        "mends": words.MENDS,
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
    """Of a browser's sign-in, in ms: its end, how long before people are warned, and the last end it may have."""

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
    here = words.STEPS.index(desktop.state)
    return [
        (words.STEP_WORDS[step], "done" if position < here else "now" if position == here else "next")
        for position, step in enumerate(words.STEPS)
    ]


def may_open(desktop: Desktop) -> bool:
    return desktop.state in OPEN_STATES
