"""A user's desktops as people see them: what was asked for, merged with what the cluster says.

The status database knows a desktop only once the cluster has spoken of it, and
keeps no failed wish. `seen` closes both gaps; pages, REST and live events all
show what it returns, and nothing else. What is not the caller's does not exist.
"""

from dataclasses import dataclass, replace

from pupitre.domain.command import (
    FINAL_STATES,
    BootDesktop,
    Command,
    CommandKind,
    CommandState,
    DestroyDesktop,
    Fault,
)
from pupitre.domain.desktop import OPEN_STATES, Desktop, DesktopState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.people.access import Role, User, may_edit_images, may_see_desktop
from pupitre.errors import Conflict, Forbidden, NotFound
from pupitre.portal.commands import ask
from pupitre.portal.context import Portal, new_id
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.live.freshness import ClusterFreshness, cluster_freshness
from pupitre.runtime.clock import now_ms
from pupitre.timings import FAILURE_SHOWN_MS, ROW_EXPECTED_MS

_UNKNOWN = "There is no such desktop. Your desktops are on the first page, or under GET /api/v1/desktops."


@dataclass(frozen=True, slots=True)
class Connection:
    """Address at which a native viewer finds the desktop's screen, while its host lets viewers in."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class SeenDesktop:
    """A desktop with its newest command.

    ``fault``: why the last thing asked of it could not be done; ``boot_fault``: why it could not be started.
    ``link`` says how fresh the desktop's state is, None where nobody asked.
    """

    desktop: Desktop
    command: Command | None = None
    fault: Fault | None = None
    boot_fault: Fault | None = None
    shown: bool = True
    link: ClusterFreshness | None = None
    connection: Connection | None = None

    @property
    def id(self) -> str:
        return self.desktop.id


def seen(row: Desktop | None, commands: list[Command], *, now: int) -> SeenDesktop | None:
    """One desktop from its status row and its commands (oldest first); None when there is neither.

    ``shown`` is False for what lists leave out: gone, put away, or failed long ago.
    """
    boot = next((command for command in commands if isinstance(command.order, BootDesktop)), None)
    last = commands[-1] if commands else None
    desktop = row or (_before_row(boot, now) if boot else None)
    if desktop is None:
        return None
    stopping = last is not None and last.kind is CommandKind.DESTROY_DESKTOP
    boot_failed = boot is not None and boot.state in FINAL_STATES - {CommandState.SUCCEEDED}
    fault = last.fault if last and last.state in FINAL_STATES else None
    if last and stopping and last.state not in FINAL_STATES and desktop.state is not DesktopState.GONE:
        if desktop.state is not DesktopState.STOPPING:
            desktop = replace(desktop, state=DesktopState.STOPPING, since=last.created, reason=None)
    elif last and stopping and last.state is CommandState.SUCCEEDED and row is None:
        desktop = replace(desktop, state=DesktopState.GONE, since=last.finished or last.created)
    elif desktop.state is DesktopState.GONE and boot and boot_failed and not stopping:
        desktop = replace(desktop, state=DesktopState.FAILED, since=boot.finished or desktop.since)
    if desktop.state is DesktopState.FAILED and not desktop.reason and boot and boot.fault:
        desktop = replace(desktop, reason=boot.fault.reason)
    hidden = desktop.state is DesktopState.GONE
    if desktop.state is DesktopState.FAILED:
        hidden = now - desktop.since > FAILURE_SHOWN_MS or (boot is not None and boot.dismissed)
    return SeenDesktop(desktop, last, fault, boot.fault if boot else None, not hidden)


def _before_row(boot: Command, now: int) -> Desktop:
    """Row of a desktop as its boot command alone says it."""
    assert isinstance(boot.order, BootDesktop)
    state, since = DesktopState.REQUESTED, boot.created
    if boot.state is CommandState.SUCCEEDED:
        if boot.finished and now - boot.finished > ROW_EXPECTED_MS:
            state, since = DesktopState.GONE, boot.finished
    elif boot.state in FINAL_STATES:
        state, since = DesktopState.FAILED, boot.finished or boot.created
    return Desktop(
        id=boot.order.desktop,
        owner=boot.user,
        image=boot.order.image,
        host=None,
        state=state,
        since=since,
        created=boot.created,
        reason=boot.fault.reason if boot.fault else None,
    )


async def desktops_of(portal: Portal, user: User) -> list[SeenDesktop]:
    """All that the user should see, newest first."""
    now = now_ms()
    rows = {row.id: row for row in portal.status.desktops_of(user.id)}
    boots = await portal.commands.recent_boots(user.id, since=now - FAILURE_SHOWN_MS)
    wanted = {boot.desktop for boot in boots if boot.desktop} - rows.keys()
    rows |= await portal.status.find_desktops(wanted)
    commands = await portal.commands.of_desktops(rows.keys() | wanted)
    found = [seen(rows.get(id), commands.get(id, []), now=now) for id in sorted(rows.keys() | wanted, reverse=True)]
    return [_connected(portal, desktop) for desktop in found if desktop and desktop.shown]


async def desktop_of(portal: Portal, user: User, desktop_id: str) -> SeenDesktop:
    """Raises `NotFound` alike for another's desktop and for none. A gone one is still there to be asked for."""
    await portal.status.refresh()
    commands = await portal.reads.commands.do(desktop_id)
    row = (await portal.status.find_desktops([desktop_id])).get(desktop_id)
    return _connected(portal, _visible(user, seen(row, commands, now=now_ms())))


async def latest_of(portal: Portal, user: User, desktop_id: str) -> SeenDesktop:
    """Desktop for live events, as it was told last. Raises as `desktop_of` does."""
    commands = await portal.feed.commands_of(desktop_id)
    found = seen(portal.status.desktop(desktop_id), commands, now=now_ms())
    return _connected(portal, _visible(user, found))


def _visible(user: User, found: SeenDesktop | None) -> SeenDesktop:
    if found is None or not may_see_desktop(user, found.desktop):
        raise NotFound(_UNKNOWN)
    return found


def _connected(portal: Portal, found: SeenDesktop) -> SeenDesktop:
    """Desktop with how fresh it is and where native viewers find it."""
    return replace(found, link=cluster_freshness(portal), connection=_connection(portal, found.desktop))


def _connection(portal: Portal, desktop: Desktop) -> Connection | None:
    host = portal.status.host(desktop.host)
    if host is None or host.viewer_port is None or desktop.state not in OPEN_STATES:
        return None
    return Connection(host.address, host.viewer_port)


async def start(portal: Portal, caller: Caller, image_id: str, *, edition: bool = False) -> Command:
    """Ask for a desktop; with ``edition`` on a host where images are edited.

    Raises `NotFound`, `Conflict`, `Forbidden`, `LimitReached` or `TooEarly`; then nothing has changed.
    """
    if edition or not _is_ready(portal.status.image(image_id)):
        await portal.status.refresh()  # it may just have become ready
    image = image_named(portal, image_id)
    if edition:
        _check_editable(portal, caller, image)
    if not _is_ready(image):
        raise Conflict(_not_ready(image))
    order = BootDesktop(desktop=new_id(), image=image_id, edition=edition)
    return await ask(portal, caller, order, limit=limit_of(portal, caller.user))


def _is_ready(image: Image | None) -> bool:
    return image is not None and image.state is CopyState.READY


def _check_editable(portal: Portal, caller: Caller, image: Image) -> None:
    if not may_edit_images(caller.user):
        raise Forbidden("Only teachers and administrators start a desktop to edit its image. Start it without.")
    if image.id not in portal.status.editable:
        raise Conflict(f"No edition host has {image.name} ready. Start it without editing, or ask your administrator.")


async def stop(portal: Portal, caller: Caller, desktop_id: str) -> Command | None:
    """Ask for the end of a desktop, or put away one that failed before it came to be (then None).

    Raises `NotFound`, `Conflict` when it is gone already, `TooEarly`.
    """
    found = await desktop_of(portal, caller.user, desktop_id)
    if found.desktop.state is DesktopState.GONE:
        raise Conflict("This desktop is gone already. There is nothing left to stop.")
    if found.desktop.state is DesktopState.FAILED:
        await portal.commands.dismiss(desktop_id)
        if portal.status.desktop(desktop_id) is None or not found.shown:
            return None
    elif (
        found.command and found.command.kind is CommandKind.DESTROY_DESKTOP and found.command.state not in FINAL_STATES
    ):
        return found.command  # asked twice is asked once
    return await ask(portal, caller, DestroyDesktop(desktop=desktop_id))


def image_named(portal: Portal, image_id: str) -> Image:
    """Raises `NotFound`, which names the images there are."""
    if image := portal.status.image(image_id):
        return image
    there_are = ", ".join(image.id for image in portal.status.images) or "none yet"
    raise NotFound(f"There is no image {image_id[:64]!r}. There are: {there_are}.")


def limit_of(portal: Portal, user: User) -> int:
    """Number of desktops that the user may have at once."""
    settings = portal.settings
    return {
        Role.STUDENT: settings.student_desktops,
        Role.TEACHER: settings.teacher_desktops,
        Role.ADMIN: settings.admin_desktops,
    }[user.role]


def _not_ready(image: Image) -> str:
    done = f" ({image.progress:.0%} done)" if image.progress is not None else ""
    step = f": {image.reason}" if image.reason else ""
    if image.state is CopyState.FAILED:
        return f"{image.name} could not be prepared{step}. Choose another image or tell your administrator."
    return f"{image.name} is still being prepared{done}{step}. Its page shows when it is ready."
