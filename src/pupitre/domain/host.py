"""A host: one VM server with its agent."""

from dataclasses import dataclass
from enum import StrEnum

from pupitre.domain.machine import Machine


class HostState(StrEnum):
    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    RECONNECTING = "reconnecting"
    TIMED_OUT = "timed_out"
    SHUT_DOWN = "shut_down"


class HostEvent(StrEnum):
    REPORT = "report"
    MISS = "miss"
    GIVE_UP = "give_up"
    DRAIN = "drain"
    SHUT_DOWN = "shut_down"


_S, _E = HostState, HostEvent

HOST_LIFE: Machine[HostState, HostEvent] = Machine(
    name="host",
    initial=_S.JOINING,
    table={
        _S.JOINING: {_E.REPORT: _S.READY, _E.MISS: _S.RECONNECTING, _E.GIVE_UP: _S.TIMED_OUT},
        _S.READY: {_E.REPORT: _S.READY, _E.MISS: _S.RECONNECTING, _E.DRAIN: _S.DRAINING, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.DRAINING: {_E.REPORT: _S.DRAINING, _E.MISS: _S.RECONNECTING, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.RECONNECTING: {
            _E.REPORT: _S.READY,
            _E.MISS: _S.RECONNECTING,
            _E.GIVE_UP: _S.TIMED_OUT,
            _E.SHUT_DOWN: _S.SHUT_DOWN,
        },
        _S.TIMED_OUT: {_E.REPORT: _S.READY, _E.MISS: _S.TIMED_OUT, _E.SHUT_DOWN: _S.SHUT_DOWN},
        _S.SHUT_DOWN: {_E.REPORT: _S.READY},
    },
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host says of itself. Memory in MiB, disk in MiB free where overlays go."""

    memory_mib: int
    vcpus: int
    disk_free_mib: int
    hypervisor: str
    accelerator: str
    version: str


@dataclass(frozen=True, slots=True)
class Host:
    """A registered host. ``address`` and ``port`` are its console server's.

    ``name`` is the agent's own: it stands in its certificate and never changes. ``label`` is what people
    call the host. ``mac`` wakes its machine. ``viewer_port`` serves native viewers, where the host allows them.
    """

    name: str
    state: HostState
    address: str
    port: int
    edition: bool
    since: int
    reason: str | None = None
    facts: HostFacts | None = None
    label: str = ""
    mac: str | None = None
    viewer_port: int | None = None

    @property
    def title(self) -> str:
        """What to call it."""
        return self.label or self.name
