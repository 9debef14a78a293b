"""Registers this machine's own hosts and waits for the outcomes (``… pupitre.up.registration NAME:PORT …``).

Commands like any other: rows, written in the name of the first administrator. A host is registered
once in the life of its folder: who unregisters it later does not find it back after the next `up`.
"""

import asyncio
import sys

import uuid_utils

from pupitre import config
from pupitre.config import Settings
from pupitre.domain.command import FINAL_STATES, Command, CommandKind, CommandState, RegisterHost
from pupitre.domain.people.access import Role
from pupitre.errors import PupitreError, RegistrationFault, SetupError
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import ungrouped
from pupitre.store.accounts import Accounts
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.new_commands import NewCommand
from pupitre.store.sql.engine import Database, open_database
from pupitre.up.hosts import LocalHost, local_hosts


async def register(settings: Settings, ports: dict[str, int]) -> None:
    """Those of our hosts that ``ports`` names, each with its console port.

    Raises `RegistrationFault` with the cluster's reason.
    """
    accounts, commands = (open_database(settings, "portal", name) for name in ("accounts", "commands"))
    try:
        admin = await _administrator(Accounts(accounts))
        with ungrouped(RegistrationFault):
            async with asyncio.TaskGroup() as tasks:
                for host in local_hosts(settings):
                    if host.name in ports:
                        tasks.create_task(_register(settings, admin, commands, host, ports[host.name]))
    finally:
        await accounts.close()
        await commands.close()


async def _administrator(accounts: Accounts) -> str:
    for user in await accounts.users():
        if user.role is Role.ADMIN:
            return user.id
    raise SetupError("There is no administrator.", "Run: pupitre user add NAME --role admin")


async def _register(settings: Settings, admin: str, database: Database, host: LocalHost, port: int) -> None:
    commands = Commands(database)
    now = now_ms()
    command = Command(
        id=str(uuid_utils.uuid7()),
        user=admin,
        order=RegisterHost(host.name, settings.host_address, port, mac=host.mac),
        state=CommandState.QUEUED,
        created=now,
        deadline=now + int(settings.timeout_of(CommandKind.REGISTER_HOST) * 1000),
    )
    async with database.listen(ANSWERED) as listener:
        await commands.request(NewCommand(command))
        while (seen := await commands.get(command.id)) and seen.state not in FINAL_STATES:
            await listener.wait()
    if seen is None or seen.state is not CommandState.SUCCEEDED:
        reason = seen.fault.reason if seen and seen.fault else "its command ended without an outcome"
        raise RegistrationFault(f"{host.name}: {reason}")
    host.registered.touch()


if __name__ == "__main__":
    try:
        named = (argument.rpartition(":") for argument in sys.argv[1:])
        asyncio.run(register(config.load(), {name: int(port) for name, _, port in named}))
    except PupitreError as error:
        print(f"The host was not registered: {error}", file=sys.stderr)
        sys.exit(1)
