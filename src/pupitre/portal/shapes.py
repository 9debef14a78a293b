"""The JSON of the REST API: each shape beside the function that fills it."""

from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pupitre.domain.access import Role, User
from pupitre.domain.command import Command, CommandKind, CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.status import Link
from pupitre.portal.desktops import SeenDesktop

T = TypeVar("T")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]{1,255}$")]
Password = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Page(BaseModel, Generic[T]):
    """A list; ``next`` is what to ask for as ``after``, null at the end."""

    items: list[T]
    next: str | None = None


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    password: Password


class Token(BaseModel):
    """Send it as ``Authorization: Bearer …``. It cannot be read again."""

    token: str
    expires: datetime


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
    """``late`` is an outcome that came after the command had timed out."""

    id: str
    kind: CommandKind
    state: CommandState
    desktop: str | None
    error: FaultOut | None
    late: CommandState | None
    created: datetime
    finished: datetime | None


class DesktopOut(BaseModel):
    """``since`` is when the present state began."""

    id: str
    image: str
    state: DesktopState
    host: str | None
    since: datetime
    created: datetime
    reason: str | None
    error: FaultOut | None = Field(description="Why the last command for this desktop failed.")


class DesktopRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: Annotated[str, StringConstraints(min_length=1, max_length=64)]


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


class HostOut(BaseModel):
    name: str
    state: HostState
    address: str
    port: int
    edition: bool
    since: datetime
    reason: str | None
    facts: FactsOut | None


class HostRequest(BaseModel):
    """``address`` and ``port`` are where the gateway reaches the host's consoles."""

    model_config = ConfigDict(extra="forbid")
    name: HostName
    address: Address
    port: Annotated[int, Field(ge=1, le=65535)]
    edition: bool = False


class LinkOut(BaseModel):
    cluster: str
    connected: bool
    since: datetime
    reason: str | None


class UserOut(BaseModel):
    id: str
    name: str
    role: Role


class UserRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Name
    role: Role
    password: Password


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


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
        desktop=command.desktop,
        error=FaultOut(code=command.fault.code, reason=command.fault.reason) if command.fault else None,
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
        error=FaultOut(code=seen.fault.code, reason=seen.fault.reason) if seen.fault else None,
    )


def host_out(host: Host) -> HostOut:
    facts = host.facts
    return HostOut(
        name=host.name,
        state=host.state,
        address=host.address,
        port=host.port,
        edition=host.edition,
        since=moment(host.since),
        reason=host.reason,
        facts=FactsOut(
            memory_mib=facts.memory_mib,
            vcpus=facts.vcpus,
            disk_free_mib=facts.disk_free_mib,
            hypervisor=facts.hypervisor,
            accelerator=facts.accelerator,
            version=facts.version,
        )
        if facts
        else None,
    )


def link_out(link: Link) -> LinkOut:
    return LinkOut(cluster=link.cluster, connected=link.connected, since=moment(link.since), reason=link.reason)


def user_out(user: User) -> UserOut:
    return UserOut(id=user.id, name=user.name, role=user.role)
