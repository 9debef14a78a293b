"""A user's desktops as people see them: what was asked for, merged with what the cluster says.

The status database knows a desktop only once the cluster has spoken of it, and
keeps no failed wish. `seen` closes both gaps; pages, REST and live events all
show what it returns, and nothing else. What is not the caller's does not exist.
"""

from dataclasses import dataclass, replace

import uuid_utils

from pupitre.clock import now_ms
from pupitre.domain.access import Role, User, may_see_command, may_see_desktop
from pupitre.domain.command import (
    FINAL_STATES,
    BootDesktop,
    Command,
    CommandKind,
    CommandState,
    DestroyDesktop,
    Fault,
    Order,
    RegisterHost,
)
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.image import CopyState, Image
from pupitre.errors import Conflict, NotFound
from pupitre.portal.context import Portal
from pupitre.store.commands import Allowance

SHOWN_AFTER_FAILURE_MS = 10 * 60 * 1000
"""How long a desktop that failed stays in sight unless its user puts it away."""
ROW_EXPECTED_WITHIN_MS = 60 * 1000
"""After a boot that succeeded, how long its row may take to arrive before the desktop counts as gone."""

_UNKNOWN = "There is no such desktop. Your desktops are on the first page, or under GET /api/v1/desktops."


@dataclass(frozen=True, slots=True)
class SeenDesktop:
    """A desktop with its newest command.

    ``fault``: why the last thing asked of it could not be done; ``boot_fault``: why it could not be started.
    """

    desktop: Desktop
    command: Command | None = None
    fault: Fault | None = None
    boot_fault: Fault | None = None
    shown: bool = True

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
        hidden = now - desktop.since > SHOWN_AFTER_FAILURE_MS or (boot is not None and boot.dismissed)
    return SeenDesktop(desktop, last, fault, boot.fault if boot else None, not hidden)


def _before_row(boot: Command, now: int) -> Desktop:
    """What a boot command alone says of its desktop."""
    assert isinstance(boot.order, BootDesktop)
    state, since = DesktopState.REQUESTED, boot.created
    if boot.state is CommandState.SUCCEEDED:
        if boot.finished and now - boot.finished > ROW_EXPECTED_WITHIN_MS:
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


def new_id() -> str:
    """A UUIDv7: ids sort by the time they were made."""
    return str(uuid_utils.uuid7())


async def desktops_of(portal: Portal, user: User) -> list[SeenDesktop]:
    """All that the user should see, newest first."""
    now = now_ms()
    rows = {row.id: row for row in await portal.status.desktops_of(user.id)}
    boots = await portal.commands.recent_boots(user.id, since=now - SHOWN_AFTER_FAILURE_MS)
    wanted = {boot.desktop for boot in boots if boot.desktop} - rows.keys()
    rows |= {row.id: row for row in await portal.status.desktops(wanted)}
    commands = await portal.commands.of_desktops(rows.keys() | wanted)
    found = [seen(rows.get(id), commands.get(id, []), now=now) for id in sorted(rows.keys() | wanted, reverse=True)]
    return [desktop for desktop in found if desktop and desktop.shown]


async def desktop_of(portal: Portal, user: User, desktop_id: str) -> SeenDesktop:
    """Raises `NotFound` alike for another's desktop and for none. A gone one is still there to be asked for."""
    row = await portal.status.desktop(desktop_id)
    commands = (await portal.commands.of_desktops([desktop_id])).get(desktop_id, [])
    found = seen(row, commands, now=now_ms())
    if found is None or not may_see_desktop(user, found.desktop):
        raise NotFound(_UNKNOWN)
    return found


async def start(portal: Portal, user: User, image_id: str) -> Command:
    """Ask for a desktop. Raises `NotFound`, `Conflict`, `LimitReached` or `TooEarly`; then nothing has changed."""
    image = await image_named(portal, image_id)
    if image.state is not CopyState.READY:
        raise Conflict(_not_ready(image))
    allowance = Allowance(limit_of(portal, user), lambda: portal.status.counted_of(user.id))
    return await _request(portal, user, BootDesktop(desktop=new_id(), image=image.id), allowance)


async def stop(portal: Portal, user: User, desktop_id: str) -> Command | None:
    """Ask for the end of a desktop, or put away one that failed before it came to be (then None).

    Raises `NotFound`, `Conflict` when it is gone already, `TooEarly`.
    """
    found = await desktop_of(portal, user, desktop_id)
    if found.desktop.state is DesktopState.GONE:
        raise Conflict("This desktop is gone already. There is nothing left to stop.")
    if found.desktop.state is DesktopState.FAILED:
        await portal.commands.dismiss(desktop_id)
        if await portal.status.desktop(desktop_id) is None or not found.shown:
            return None
    elif (
        found.command and found.command.kind is CommandKind.DESTROY_DESKTOP and found.command.state not in FINAL_STATES
    ):
        return found.command  # asked twice is asked once
    return await _request(portal, user, DestroyDesktop(desktop=desktop_id), None)


async def register_host(portal: Portal, user: User, order: RegisterHost) -> Command:
    """Ask the cluster to take a host. Raises `TooEarly`."""
    return await _request(portal, user, order, None)


async def command_of(portal: Portal, user: User, command_id: str) -> Command:
    """Raises `NotFound` alike for another's command and for none."""
    found = await portal.commands.get(command_id)
    if found is None or not may_see_command(user, found):
        raise NotFound("There is no such command. Yours are under GET /api/v1/commands.")
    return found


async def image_named(portal: Portal, image_id: str) -> Image:
    """Raises `NotFound`, which names the images there are."""
    images = await portal.status.images()
    for image in images:
        if image.id == image_id:
            return image
    there_are = ", ".join(image.id for image in images) or "none yet"
    raise NotFound(f"There is no image {image_id[:64]!r}. There are: {there_are}.")


def limit_of(portal: Portal, user: User) -> int:
    """How many desktops the user may have at once."""
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


async def _request(portal: Portal, user: User, order: Order, allowance: Allowance | None) -> Command:
    now = now_ms()
    command = Command(
        id=new_id(),
        user=user.id,
        order=order,
        state=CommandState.QUEUED,
        created=now,
        deadline=now + int(portal.settings.timeout_of(order.kind) * 1000),
    )
    interval = int(portal.settings.min_command_interval * 1000)
    return await portal.commands.request(command, interval_ms=interval, allowance=allowance)
