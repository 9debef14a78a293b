"""Registers this machine's own host and waits for the outcome (``python -m pupitre.up.registration``).

A command like any other: a row, written in the name of the first administrator.
"""

import asyncio
import sys

import uuid_utils

from pupitre import config
from pupitre.clock import now_ms
from pupitre.config import Settings
from pupitre.domain.access import Role
from pupitre.domain.command import FINAL_STATES, Command, CommandKind, CommandState, RegisterHost
from pupitre.errors import PupitreError, RegistrationFault, SetupError
from pupitre.store.accounts import Accounts
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.engine import Database, open_database


async def register(settings: Settings) -> None:
    """Raises `RegistrationFault` with the cluster's reason."""
    accounts, commands = (open_database(settings, "portal", name) for name in ("accounts", "commands"))
    try:
        admin = await _administrator(Accounts(accounts))
        await _request_and_wait(settings, admin, commands)
    finally:
        await accounts.close()
        await commands.close()


async def _administrator(accounts: Accounts) -> str:
    for user in await accounts.users():
        if user.role is Role.ADMIN:
            return user.id
    raise SetupError("There is no administrator.", "Run: pupitre user add NAME --role admin")


async def _request_and_wait(settings: Settings, admin: str, database: Database) -> None:
    commands = Commands(database)
    now = now_ms()
    command = Command(
        id=str(uuid_utils.uuid7()),
        user=admin,
        order=RegisterHost(settings.host_name, settings.host_address, settings.console_port),
        state=CommandState.QUEUED,
        created=now,
        deadline=now + int(settings.timeout_of(CommandKind.REGISTER_HOST) * 1000),
    )
    async with database.listen(ANSWERED) as listener:
        await commands.request(command, interval_ms=0)
        while (seen := await commands.get(command.id)) and seen.state not in FINAL_STATES:
            await listener.heard()
    if seen is None or seen.state is not CommandState.SUCCEEDED:
        reason = seen.fault.reason if seen and seen.fault else "its command ended without an outcome"
        raise RegistrationFault(f"{settings.host_name}: {reason}")


if __name__ == "__main__":
    try:
        asyncio.run(register(config.load()))
    except PupitreError as error:
        print(f"The host was not registered: {error}", file=sys.stderr)
        sys.exit(1)
