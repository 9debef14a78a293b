"""Accounts as administrators keep them. Whatever ends someone's rights ends what they have open, too."""

from dataclasses import replace

from pupitre.config import Settings
from pupitre.domain.command import Command, CommandState, DestroyDesktop
from pupitre.domain.people.access import Role, User, may_manage_users
from pupitre.domain.people.username import checked, checked_display
from pupitre.errors import Conflict, Forbidden, NotFound
from pupitre.portal.audit import note
from pupitre.portal.context import Portal, new_id
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.live.status_mirror import StatusMirror
from pupitre.runtime.clock import now_ms
from pupitre.store.audit import Act, bounded
from pupitre.store.commands import Commands
from pupitre.store.new_commands import NewCommand


async def add_user(
    portal: Portal, caller: Caller, name: str, role: Role, password: str, display_name: str = ""
) -> User:
    """Raises `Conflict` when the name is taken and `Invalid` when a name or the password cannot be used."""
    _check(caller)
    user = User(new_id(), checked(name), role, checked_display(display_name))
    hashed = await portal.passwords.hash(password, user.name, user.display_name)
    await portal.accounts.add_user(user, hashed, now=now_ms())
    await note(portal, Act.USER_ADDED, user=caller.user, origin=caller.origin, subject=user.name, detail=role)
    return user


async def change_user(portal: Portal, caller: Caller, name: str, role: Role | None, display_name: str | None) -> User:
    """Change a user; what is None stays. Raises `NotFound`, `Conflict` and `Invalid`."""
    user = await _named(portal, caller, name)
    if role is not None:
        user = await set_role(portal, caller, name, role)
    if display_name is not None:
        user = replace(await set_display_name(portal, caller, name, display_name), role=user.role)
    return user


async def set_role(portal: Portal, caller: Caller, name: str, role: Role) -> User:
    """Every sign-in and token of the user ends. Raises `NotFound`, and `Conflict` for one's own account."""
    user = await _other(portal, caller, name)
    await portal.accounts.set_role(user.id, role)
    portal.session_cache.forget()
    detail = f"from {user.role} to {role}"
    await note(portal, Act.ROLE_CHANGED, user=caller.user, origin=caller.origin, subject=user.name, detail=detail)
    return replace(user, role=role)


async def set_display_name(portal: Portal, caller: Caller, name: str, display_name: str) -> User:
    """Sign-ins go on. Raises `NotFound` and `Invalid`."""
    shown = checked_display(display_name)
    user = await _named(portal, caller, name)
    await portal.accounts.set_display_name(user.id, shown)
    portal.session_cache.forget()
    act = Act.DISPLAY_NAME_CHANGED
    await note(portal, act, user=caller.user, origin=caller.origin, subject=user.name, detail=shown)
    return replace(user, display_name=shown)


async def remove_user(portal: Portal, caller: Caller, name: str) -> None:
    """Remove the account and stop its desktops. Raises `NotFound`, and `Conflict` for one's own account."""
    user = await _other(portal, caller, name)
    await portal.accounts.remove_user(user.id)
    portal.session_cache.forget()
    await note(portal, Act.USER_REMOVED, user=caller.user, origin=caller.origin, subject=user.name, detail=user.role)
    await stop_desktops(portal.settings, portal.commands, portal.status, user)


async def stop_desktops(settings: Settings, commands: Commands, status: StatusMirror, user: User) -> None:
    """Ask for the end of all desktops of a user who was removed: nobody else sees them, or could stop them."""
    under_way = {boot.subject for boot in await commands.recent_boots(user.id, since=now_ms())}
    await status.refresh()
    for desktop in sorted(under_way | status.counted_of(user.id)):
        now = now_ms()
        order = DestroyDesktop(desktop=desktop)
        deadline = now + int(settings.timeout_of(order.kind) * 1000)
        command = Command(new_id(), user.id, order, CommandState.QUEUED, now, deadline)
        await commands.request(NewCommand(command))


async def _named(portal: Portal, caller: Caller, name: str) -> User:
    _check(caller)
    found = await portal.accounts.user_named(name)
    if found is None:
        raise NotFound(f"There is no user named {bounded(name, 64)}. They are under GET /api/v1/users.")
    return found[0]


async def _other(portal: Portal, caller: Caller, name: str) -> User:
    user = await _named(portal, caller, name)
    if user.id == caller.user.id:
        raise Conflict("This is your own account. Ask another administrator.")
    return user


def _check(caller: Caller) -> None:
    if not may_manage_users(caller.user):
        raise Forbidden("Only administrators see and change users. Ask yours.")
