"""The JSON of the REST API: each shape beside the function that fills it."""

from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from pupitre.domain.bounds import is_shown, shown
from pupitre.domain.command import Command, CommandKind, CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.status import ClusterLink
from pupitre.portal.commands import why
from pupitre.portal.desktops import SeenDesktop
from pupitre.portal.hosts import SeenHost
from pupitre.portal.live.freshness import ClusterFreshness
from pupitre.store.audit import AuditEntry

T = TypeVar("T")

HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]{1,255}$")]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds signs that cannot be shown")
    return text


Label = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64), AfterValidator(_printable)]
Mac = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")]
NoMac = Annotated[str, StringConstraints(max_length=0)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Page(BaseModel, Generic[T]):
    """A list; ``next`` is what to ask for as ``after``, null at the end."""

    items: list[T]
    next: str | None = None


class ImageOut(BaseModel):
    """``progress`` is 0 to 1 while the image is made, with ``reason`` the step."""

    id: str
    name: str
    description: str
    state: CopyState
    progress: float | None
    reason: str | None
    memory_mib: int
    vcpus: int


class FaultOut(BaseModel):
    code: str
    reason: str


class CommandOut(BaseModel):
    """``outcome`` is null until the command has ended; then COMMAND_EXECUTED, VM_CONNECTION_DATA or a fault's code.

    ``subject`` is the desktop or host that it is about. ``late`` is an outcome that came after the command
    had timed out; ``error`` then says what became of it.
    """

    id: str
    kind: CommandKind
    state: CommandState
    subject: str
    desktop: str | None
    outcome: str | None
    error: FaultOut | None
    late: CommandState | None
    created: datetime
    finished: datetime | None


class ConnectionOut(BaseModel):
    """Address at which a native viewer finds the screen, with what ``pupitre desktop viewer`` gives it."""

    address: str
    port: int


class DesktopOut(BaseModel):
    """``since`` is when the present state began; ``until`` when its host, being shut down, takes it away.

    ``stale``: the cluster has not confirmed this for ``age_s`` seconds (null: it never has). ``connection`` is null
    unless the desktop runs on a host that lets native viewers in.
    """

    id: str
    image: str
    state: DesktopState
    host: str | None
    since: datetime
    created: datetime
    reason: str | None
    until: datetime | None
    stale: bool
    age_s: float | None
    connection: ConnectionOut | None
    error: FaultOut | None = Field(description="Why the last command for this desktop failed.")


class DesktopRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    edition: bool = Field(False, description="On a host where images are edited. Not for students.")


class Accepted(BaseModel):
    """Written down; its outcome will be at ``/api/v1/commands/{command}``."""

    command: str


class DesktopAccepted(Accepted):
    desktop: str


class ConsoleOut(BaseModel):
    """Open ``url`` with the subprotocols ``binary`` and the ticket, once, within 30 seconds."""

    url: str
    ticket: str


class FactsOut(BaseModel):
    memory_mib: int
    vcpus: int
    disk_free_mib: int
    hypervisor: str
    accelerator: str
    version: str
    guests_mib: int
    over_books_mib: int


class WarningOut(BaseModel):
    """Warning about a host. ``number`` is in the unit that ``sentence`` says."""

    code: str
    number: int
    sentence: str


class HostOut(BaseModel):
    """``name`` is the agent's own and never changes; ``label`` is what people call the host.

    ``desktops``: how many have their place on it. ``viewer_port`` is null where native viewers are not let in.
    ``heard`` is when the cluster last confirmed all rows; ``stale``: that is ``age_s`` seconds ago, which is too long.
    """

    name: str
    label: str
    state: HostState
    address: str
    port: int
    edition: bool
    mac: str | None
    viewer_port: int | None
    since: datetime
    reason: str | None
    desktops: int
    heard: datetime | None
    stale: bool
    age_s: float | None
    facts: FactsOut | None
    warnings: list[WarningOut]


class HostRequest(BaseModel):
    """``address`` and ``port`` are where the gateway reaches the host's consoles; ``mac`` wakes its machine."""

    model_config = ConfigDict(extra="forbid")
    name: HostName
    address: Address
    port: Port
    edition: bool = False
    mac: Mac | None = None


class HostChange(BaseModel):
    """Change of a host; a field that is left out stays as it is; an empty ``label`` or ``mac`` takes it away."""

    model_config = ConfigDict(extra="forbid")
    label: Label | None = None
    address: Address | None = None
    port: Port | None = None
    edition: bool | None = None
    mac: Mac | NoMac | None = None


class HostRetirement(BaseModel):
    """``unregister``: the host leaves the cluster; else its machine is shut down.

    ``at_once``: desktops end now; else their users are warned first.
    """

    model_config = ConfigDict(extra="forbid")
    unregister: bool
    at_once: bool = False


class HaltRequest(BaseModel):
    """``hosts``: stop the hosts too."""

    model_config = ConfigDict(extra="forbid")
    hosts: bool = False


class StatusOut(BaseModel):
    """Whether the cluster is reached, and since when it is or is not (null: it was never heard of).

    ``heard`` is when it last confirmed all rows; ``stale``: that is ``age_s`` seconds ago, which is too long.
    """

    connected: bool
    since: datetime | None
    reason: str | None
    heard: datetime | None
    stale: bool
    age_s: float | None


class AuditOut(BaseModel):
    """``actor`` is who did it: a user's name, ``cluster``, or what somebody unknown called themselves.

    ``actor_id`` is empty for somebody unknown. ``outcome`` is empty for a command that was asked for:
    its outcome is an entry of its own, with the same ``command``. ``at`` is null where the time is not known.
    """

    id: str
    at: datetime | None
    actor: str
    actor_id: str
    origin: str
    action: str
    subject: str
    command: str | None
    outcome: str
    detail: str


class LinkOut(BaseModel):
    cluster: str
    connected: bool
    since: datetime
    reason: str | None


def moment(milliseconds: int) -> datetime:
    """Time of the calendar; one outside of it is shown as its first or last moment."""
    return datetime.fromtimestamp(shown(milliseconds) / 1000, UTC)


def image_out(image: Image) -> ImageOut:
    return ImageOut(
        id=image.id,
        name=image.name,
        description=image.description,
        state=image.state,
        progress=image.progress,
        reason=image.reason,
        memory_mib=image.memory_mib,
        vcpus=image.vcpus,
    )


def command_out(command: Command) -> CommandOut:
    return CommandOut(
        id=command.id,
        kind=command.kind,
        state=command.state,
        subject=command.subject,
        desktop=command.desktop,
        outcome=command.outcome or None,
        error=FaultOut(code=command.fault.code, reason=why(command) or "") if command.fault else None,
        late=command.late,
        created=moment(command.created),
        finished=moment(command.finished) if command.finished else None,
    )


def desktop_out(seen: SeenDesktop) -> DesktopOut:
    desktop = seen.desktop
    return DesktopOut(
        id=desktop.id,
        image=desktop.image,
        state=desktop.state,
        host=desktop.host,
        since=moment(desktop.since),
        created=moment(desktop.created),
        reason=desktop.reason,
        until=moment(desktop.until) if desktop.until else None,
        stale=seen.link.stale if seen.link else False,
        age_s=seen.link.age_s if seen.link else None,
        connection=ConnectionOut(address=seen.connection.address, port=seen.connection.port)
        if seen.connection
        else None,
        error=FaultOut(code=seen.fault.code, reason=seen.fault.reason) if seen.fault else None,
    )


def host_out(seen: SeenHost) -> HostOut:
    host, facts, link = seen.host, seen.host.facts, seen.link
    return HostOut(
        name=host.name,
        label=host.label,
        state=host.state,
        address=host.address,
        port=host.port,
        edition=host.edition,
        mac=host.mac,
        viewer_port=host.viewer_port,
        since=moment(host.since),
        reason=host.reason,
        desktops=seen.desktops,
        heard=moment(link.heard) if link.heard else None,
        stale=link.stale,
        age_s=link.age_s,
        facts=FactsOut(
            memory_mib=facts.memory_mib,
            vcpus=facts.vcpus,
            disk_free_mib=facts.disk_free_mib,
            hypervisor=facts.hypervisor,
            accelerator=facts.accelerator,
            version=facts.version,
            guests_mib=facts.guests_mib,
            over_books_mib=facts.over_books_mib,
        )
        if facts
        else None,
        warnings=[
            WarningOut(code=one.code, number=one.number, sentence=one.sentence(host.title)) for one in host.warnings
        ],
    )


def link_out(link: ClusterLink) -> LinkOut:
    return LinkOut(cluster=link.cluster, connected=link.connected, since=moment(link.since), reason=link.reason)


def status_out(link: ClusterFreshness) -> StatusOut:
    return StatusOut(
        connected=link.connected,
        since=moment(link.since) if link.since else None,
        reason=link.reason,
        heard=moment(link.heard) if link.heard else None,
        stale=link.stale,
        age_s=link.age_s,
    )


def audit_out(entry: AuditEntry) -> AuditOut:
    return AuditOut(
        id=entry.id,
        at=moment(entry.at) if is_shown(entry.at) else None,
        actor=entry.actor_name,
        actor_id=entry.actor,
        origin=entry.origin,
        action=entry.action,
        subject=entry.subject,
        command=entry.command,
        outcome=entry.outcome,
        detail=entry.detail,
    )
