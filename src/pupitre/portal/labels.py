"""The words in which pages say states, commands, outcomes and times. Plain sentences, the same everywhere."""

import time

from pupitre.domain.bounds import shown
from pupitre.domain.command import (
    Command,
    CommandKind,
    CommandState,
)
from pupitre.domain.command_kinds import COMMAND_KINDS
from pupitre.domain.console_link import CloseCode
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from pupitre.domain.people.throttle import Counted, Counter
from pupitre.store.audit import Act

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
_OPENS_BY_ITSELF = "It opens here by itself as soon as it runs."
CONSOLE_WORDS = {
    DesktopState.REQUESTED: ("Waiting for a place…", _OPENS_BY_ITSELF),
    DesktopState.PREPARING: ("Preparing its disk…", _OPENS_BY_ITSELF),
    DesktopState.BOOTING: ("Starting up…", _OPENS_BY_ITSELF),
    DesktopState.LOST: (
        "The desktop’s host is out of reach.",
        "It comes back by itself when its host does, and opens here again."
        " You need not wait: under “My desktops” you can stop it and start another.",
    ),
    DesktopState.STOPPING: (
        "The desktop is stopping.",
        "When it is gone, you can start another under “My desktops”.",
    ),
    DesktopState.GONE: ("This desktop is gone.", "You can start another under “My desktops”."),
    DesktopState.FAILED: (
        "The desktop has failed.",
        "Start another under “My desktops”. If that fails too, show this message to your teacher.",
    ),
}
"""Of each state without a screen: the state, and what the user can do meanwhile, or instead."""
_OVER = frozenset({DesktopState.STOPPING, DesktopState.GONE, DesktopState.FAILED})
CLOSE_WORDS = {
    CloseCode.ENDED: "The desktop has ended this connection.",
    CloseCode.LINK_LOST: "The way to the desktop’s host broke.",
    CloseCode.VIEWER_GONE: "Too much was waiting for this browser.",
    CloseCode.RESTARTING: "The server is starting again.",
    1001: "The server is going away for a moment.",
    1006: "The connection broke.",
}
"""Close codes of the gateway, and those of RFC 6455 that browsers give by themselves."""
HOST_WORDS = {
    HostState.JOINING: "Joining",
    HostState.READY: "Ready",
    HostState.DRAINING: "Being shut down",
    HostState.RECONNECTING: "Reconnecting",
    HostState.TIMED_OUT: "Not heard of",
    HostState.SHUT_DOWN: "Shut down",
}
ACTION_WORDS: dict[str, str] = {
    **{str(kind): row.title for kind, row in COMMAND_KINDS.items()},
    Act.SIGN_IN: "Sign in",
    Act.SIGN_IN_EXTENDED: "Stay signed in",
    Act.SIGN_OUT: "Sign out",
    Act.SIGN_IN_LOCKED: "Lock sign-ins",
    Act.LOCK_LIFTED: "Lift a lock",
    Act.TOKEN_MADE: "Make an API token",
    Act.TOKEN_REVOKED: "End a sign-in or token",
    Act.PASSWORD_CHANGED: "Change a password",
    Act.USER_ADDED: "Add a user",
    Act.USER_REMOVED: "Remove a user",
    Act.ROLE_CHANGED: "Change a role",
    Act.DISPLAY_NAME_CHANGED: "Change a name to be shown",
    Act.CONSOLE_OPENED: "Open a console",
    Act.VIEWER_FILE_GIVEN: "Open in a native viewer",
}
OUTCOME_WORDS = {
    "": "asked for",
    "done": "done",
    "refused": "refused",
    "COMMAND_EXECUTED": "done",
    "VM_CONNECTION_DATA": "running",
    "VM_BOOT_FAILURE": "did not start",
    "DOMAIN_DESTRUCTION_ERROR": "did not stop",
    "VM_SERVER_REGISTRATION_ERROR": "not registered",
    "VM_SERVER_UNREGISTRATION_ERROR": "not unregistered",
    "VM_SERVER_SHUTDOWN_ERROR": "not shut down",
    "VM_SERVER_BOOTUP_ERROR": "not booted up",
    "VM_SERVER_CONFIGURATION_CHANGE_ERROR": "not changed",
    "CONNECTION_ERROR": "cluster out of reach",
    "TIMED_OUT": "took too long",
    "CANCELLED": "cancelled",
    "HALTED": "cluster halted",
}
REMEDIES = {
    "CONNECTION_ERROR": "The computers behind this page were out of reach. Try again in a minute.",
    "TIMED_OUT": "Try again; if it happens again, tell your teacher.",
    "VM_BOOT_FAILURE": "Try again. If it happens again, show this message to your teacher or administrator.",
    "DOMAIN_DESTRUCTION_ERROR": "Press Stop again. If it happens again, tell your administrator.",
    "HALTED": "The cluster was halted by an administrator. Ask when it is back.",
}


def console_words() -> dict[str, dict[str, object]]:
    """Words for the script of the console page: of each state of the desktop, and of each close code."""
    return {
        "states": {
            str(state): {"words": words, "next": instead, "over": state in _OVER}
            for state, (words, instead) in CONSOLE_WORDS.items()
        },
        "closes": {str(int(code)): words for code, words in CLOSE_WORDS.items()},
    }


def action_words(action: str) -> str:
    """An action of the audit log, also one that came with a newer cluster."""
    return ACTION_WORDS.get(action, action.replace("_", " ").capitalize())


def outcome_words(command: Command) -> str:
    """State or outcome of a command, with the reason: one or more sentences."""
    took = duration((command.finished or command.created) - command.created)
    match command.state:
        case CommandState.QUEUED:
            words = "Waiting to be sent."
        case CommandState.SENT:
            words = "Sent to the cluster; no answer yet."
        case CommandState.ACCEPTED:
            words = "The cluster works on it."
        case CommandState.SUCCEEDED:
            words = f"Done after {took}."
        case CommandState.FAILED:
            words = f"Failed after {took}: {command.fault.reason if command.fault else 'the reason is not known.'}"
        case CommandState.TIMED_OUT:
            words = f"It took longer than {duration(command.deadline - command.created)} and was cancelled."
        case CommandState.CANCELLED:
            words = f"Cancelled after {took}{f': {command.fault.reason}' if command.fault else '.'}"
    return f"{words} {late_words(command)}".strip()


def late_words(command: Command) -> str:
    """Words on an outcome that came after nobody waited any more; empty when none did."""
    match command.late, command.kind:
        case None, _:
            return ""
        case CommandState.SUCCEEDED, CommandKind.BOOT_DESKTOP:
            return "A late answer came: the desktop had started after all. It is taken away again."
        case CommandState.SUCCEEDED, _:
            return "A late answer came: it was done after all."
        case _:
            return "A late answer came: it could not be done."


def lock_words(counter: Counter) -> str:
    """Words on what a lock keeps out."""
    match counter.kind:
        case Counted.PAIR:
            return f"Sign-ins as {counter.name} from {counter.address}"
        case Counted.NAME:
            return f"Sign-ins as {counter.name} from everywhere but known browsers"
        case Counted.ADDRESS:
            return f"Sign-ins from {counter.address} but in known browsers"
        case Counted.DEVICE:
            return f"A browser of {counter.name} is no longer trusted for a day"


def duration(milliseconds: int) -> str:
    """Duration as pages say it: ``8 s``, ``3 min``, ``2 h 5 min``, ``4 days``."""
    seconds = max(0, milliseconds // 1000)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} days"


def lasting(milliseconds: int) -> str:
    """Planned duration as pages say it: ``12 hours``, ``90 minutes``, ``90 seconds``."""
    seconds = round(milliseconds / 1000)
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= 2 * size and seconds % size < 2:
            return f"{seconds // size} {unit}s"
    if seconds >= 3600:
        return f"{seconds // 60} minutes"
    return f"{seconds} seconds"


def countdown(milliseconds: int) -> str:
    """Time that is left, as ``0:42``."""
    seconds = max(0, -(-milliseconds // 1000))
    return f"{seconds // 60}:{seconds % 60:02}"


def moment(milliseconds: int) -> str:
    """RFC 3339, which the browser turns into local time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shown(milliseconds) / 1000))


def gibibytes(mebibytes: int) -> str:
    """``7.5 GiB``, or ``512 MiB`` where that is easier to read."""
    return f"{mebibytes} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f}".removesuffix(".0") + " GiB"
