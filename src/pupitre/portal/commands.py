"""Commands: how they are asked for, and what came of them in words."""

from pupitre.domain.command import Command, CommandState, Order
from pupitre.domain.people.access import User, may_see_command
from pupitre.errors import NotFound
from pupitre.portal.context import Portal, new_id
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.labels import late_words
from pupitre.portal.live.freshness import check_reached
from pupitre.runtime.clock import now_ms
from pupitre.store.new_commands import Allowance


async def ask(portal: Portal, caller: Caller, order: Order, allowance: Allowance | None = None) -> Command:
    """Write down a command. Raises `TooEarly`, `LimitReached` or `NoAnswer`; then nothing has changed."""
    now = now_ms()
    portal.gate.check(caller.user.id, now)
    await check_reached(portal)
    command = Command(
        id=new_id(),
        user=caller.user.id,
        order=order,
        state=CommandState.QUEUED,
        created=now,
        deadline=now + int(portal.settings.timeout_of(order.kind) * 1000),
    )
    await portal.commands.request(
        command,
        interval_ms=portal.gate.interval_ms,
        allowance=allowance,
        actor_name=caller.user.name,
        origin=caller.origin,
    )
    portal.gate.passed(caller.user.id, now)
    return command


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
