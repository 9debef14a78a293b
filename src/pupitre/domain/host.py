"""A host: one VM server with its agent.

The events of its life are what the cluster notices and does: REPORT (it is heard and may take desktops), DRAIN (it
is heard and shall take none), MISS (it is silent), GIVE_UP (silent too long), SHUT_DOWN (it said so), WAKE.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from pupitre.domain.bounds import DiskMib, Line, MemoryMib, Name, Port, Text, Time, Vcpus
from pupitre.domain.state_machine import Machine
from pupitre.domain.warning import HostWarning
from pupitre.errors import Invalid

Mac = Annotated[str, msgspec.Meta(max_length=17, pattern=r"^[0-9a-f:]*\Z")]


class HostState(StrEnum):
    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    RECONNECTING = "reconnecting"
    TIMED_OUT = "timed_out"
    SHUT_DOWN = "shut_down"


class HostAct(StrEnum):
    """Action that a host may report as its own; the audit log takes nothing else of it."""

    OVERLAY_REMOVED = "overlay_removed"


class HostEvent(StrEnum):
    REPORT = "report"
    MISS = "miss"
    GIVE_UP = "give_up"
    DRAIN = "drain"
    SHUT_DOWN = "shut_down"
    WAKE = "wake"


_S, _E = HostState, HostEvent
# Which of the two it is follows from what is wanted of the host: a draining one that comes back goes on draining.
_HEARD = {_E.REPORT: _S.READY, _E.DRAIN: _S.DRAINING}

HOST_LIFE: Machine[HostState, HostEvent] = Machine(
    name="host",
    initial=_S.JOINING,
    table={
        _S.JOINING: {**_HEARD, _E.MISS: _S.RECONNECTING, _E.GIVE_UP: _S.TIMED_OUT, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.READY: {**_HEARD, _E.MISS: _S.RECONNECTING, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.DRAINING: {**_HEARD, _E.MISS: _S.RECONNECTING, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.RECONNECTING: {**_HEARD, _E.GIVE_UP: _S.TIMED_OUT, _E.WAKE: _S.JOINING, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.TIMED_OUT: {**_HEARD, _E.WAKE: _S.JOINING, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.SHUT_DOWN: {**_HEARD, _E.WAKE: _S.JOINING, _E.SHUT_DOWN: _S.SHUT_DOWN},
    },
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts that a host reports of itself. Memory in MiB, disk in MiB free where overlays go.

    ``guests_mib`` is the memory that its guests' emulators take now, ``over_books_mib`` what of it is more than is
    counted for them.
    """

    memory_mib: MemoryMib
    vcpus: Vcpus
    disk_free_mib: DiskMib
    hypervisor: Line
    accelerator: Name
    version: Line
    guests_mib: MemoryMib = 0
    over_books_mib: MemoryMib = 0


@dataclass(frozen=True, slots=True)
class Host:
    """A registered host. ``address`` and ``port`` are its console server's.

    ``name`` is the agent's own: it stands in its certificate and never changes. ``label`` is what people
    call the host. ``mac`` wakes its machine. ``viewer_port`` serves native viewers, where the host allows them.
    ``edition``: an edition host, on which images are edited and nothing else runs.
    ``warnings`` are what is wrong with it, or soon will be.
    """

    name: Name
    state: HostState
    address: Line
    port: Port
    edition: bool
    since: Time
    reason: Text | None = None
    facts: HostFacts | None = None
    label: Name = ""
    mac: Mac | None = None
    viewer_port: Port | None = None
    warnings: tuple[HostWarning, ...] = ()

    @property
    def title(self) -> str:
        """Label, or else the name."""
        return self.label or self.name


def parse_mac(text: str) -> str:
    """A network card's address in its usual form, ``52:54:00:12:34:56``. Raises `Invalid`."""
    digits = re.sub(r"[:.-]", "", text.strip().lower())
    if not re.fullmatch(r"[0-9a-f]{12}", digits) or int(digits[:2], 16) & 1:
        raise Invalid(f"{text!r} is not the address of a network card. It looks like 52:54:00:12:34:56.")
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))
