"""Commands: how they are asked for, and what came of them in words."""

from pupitre.domain.command import Command, CommandState, Order
from pupitre.domain.command_limits import DesktopQuota
from pupitre.domain.people.access import User, may_see_command
from pupitre.errors import NotFound
from pupitre.portal.context import Portal, new_id
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.labels import late_words
from pupitre.portal.live.freshness import check_reached
from pupitre.runtime.clock import now_ms
from pupitre.store.new_commands import NewCommand


async def ask(portal: Portal, caller: Caller, order: Order, *, limit: int | None = None) -> Command:
    """Write down a command; ``limit``, for one that starts a desktop, is how many its user may have.

    Raises `TooEarly`, `LimitReached` or `NoAnswer`; then nothing has changed.
    """
    now = now_ms()
    portal.rate_limit.check(caller.user.id, now)
    await check_reached(portal)
    quota = None if limit is None else await _quota(portal, caller.user, limit)
    command = Command(
        id=new_id(),
        user=caller.user.id,
        order=order,
        state=CommandState.QUEUED,
        created=now,
        deadline=now + int(portal.settings.timeout_of(order.kind) * 1000),
    )
    await portal.commands.request(
        NewCommand(
            command,
            interval_ms=portal.rate_limit.interval_ms,
            quota=quota,
            actor_name=caller.user.name,
            origin=caller.origin,
        )
    )
    portal.rate_limit.passed(caller.user.id, now)
    return command


async def _quota(portal: Portal, user: User, limit: int) -> DesktopQuota:
    """Read outside the transaction that writes the command: no writer waits for another database."""
    version, counted = await portal.reads.counted.do(user.id)
    return DesktopQuota(limit, counted, as_of=version)


async def command_of(portal: Portal, user: User, command_id: str) -> Command:
    """Raises `NotFound` alike for another's command and for none."""
    found = await portal.commands.get(command_id)
    if found is None or not may_see_command(user, found):
        raise NotFound("There is no such command. Yours are under GET /api/v1/commands.")
    return found


def why(command: Command) -> str | None:
    """Why the command did not succeed, and what it did after all; None when there is nothing to say."""
    reason = command.fault.reason if command.fault else None
    return f"{reason or ''} {late_words(command)}".strip() or None
