"""Templates, and the words in which pages say states and times."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pupitre.domain.access import User, may_manage_hosts
from pupitre.domain.desktop import OPEN_STATES, Desktop, DesktopState
from pupitre.domain.host import HostState
from pupitre.portal.assets import Assets

STEPS = (DesktopState.REQUESTED, DesktopState.PREPARING, DesktopState.BOOTING, DesktopState.RUNNING)
STEP_WORDS = {
    DesktopState.REQUESTED: "Asked for",
    DesktopState.PREPARING: "Preparing its disk",
    DesktopState.BOOTING: "Starting up",
    DesktopState.RUNNING: "Ready",
}
STATE_WORDS = {
    DesktopState.REQUESTED: "Waiting for a place",
    DesktopState.PREPARING: "Preparing its disk",
    DesktopState.BOOTING: "Starting up",
    DesktopState.RUNNING: "Running",
    DesktopState.STOPPING: "Stopping",
    DesktopState.GONE: "Gone",
    DesktopState.FAILED: "Failed",
    DesktopState.LOST: "Out of reach",
}
HOST_WORDS = {
    HostState.JOINING: "Joining",
    HostState.READY: "Ready",
    HostState.DRAINING: "Draining",
    HostState.RECONNECTING: "Reconnecting",
    HostState.TIMED_OUT: "Not heard of",
    HostState.SHUT_DOWN: "Shut down",
}
MENDS = {
    "CONNECTION_ERROR": "The computers behind this page were out of reach. Try again in a minute.",
    "TIMED_OUT": "It took too long. Try again; if it happens again, tell your teacher.",
    "VM_BOOT_FAILURE": "Try again. If it happens again, show this message to your teacher or administrator.",
    "DOMAIN_DESTRUCTION_ERROR": "Press Stop again. If it happens again, tell your administrator.",
}


def templates(assets: Assets) -> Jinja2Templates:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": moment}
    environment.globals |= {
        "assets": assets,
        "may_manage_hosts": may_manage_hosts,
        "may_open": may_open,
        "steps": steps,
        "state_words": STATE_WORDS,
        "host_words": HOST_WORDS,
        "mends": MENDS,
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
    whole = {"user": user, "now": int(time.time() * 1000), "notice": None, **context}
    return found.TemplateResponse(request, name, whole, status, headers)


def fragment(request: Request, name: str, context: Mapping[str, Any]) -> str:
    """A piece of a page, for an event."""
    found: Jinja2Templates = request.app.state.templates
    return found.get_template(name).render({"now": int(time.time() * 1000), **context})


def steps(desktop: Desktop) -> list[tuple[str, str]]:
    """The way to a running desktop: (words, ``done`` | ``now`` | ``next``)."""
    here = STEPS.index(desktop.state)
    return [
        (STEP_WORDS[step], "done" if position < here else "now" if position == here else "next")
        for position, step in enumerate(STEPS)
    ]


def may_open(desktop: Desktop) -> bool:
    return desktop.state in OPEN_STATES


def duration(milliseconds: int) -> str:
    """As pages say it: ``8 s``, ``3 min``, ``2 h 5 min``, ``4 days``."""
    seconds = max(0, milliseconds // 1000)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} days"


def moment(milliseconds: int) -> str:
    """RFC 3339, which the browser turns into local time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))
