"""Commands as the portal writes them: what both clusters of the tests have in common."""

import uuid_utils

from pupitre.domain.command import BootDesktop, Command, CommandState, DestroyDesktop, Order
from pupitre.runtime.clock import now_ms
from pupitre.store.commands import Commands
from pupitre.store.new_commands import NewCommand

USER = "0190aaaa-0000-7000-8000-000000000001"


def new_id() -> str:
    return str(uuid_utils.uuid7())


class CommandWriter:
    """Writes rows in the place of the portal. ``image`` is the one that desktops start from."""

    TIMEOUT = 60.0

    def __init__(self, commands: Commands, image: str) -> None:
        self.commands = commands
        self.image = image

    async def ask(self, order: Order, *, user: str = USER, timeout: float | None = None) -> Command:
        """A new command, which times out after ``timeout`` seconds."""
        now, limit = now_ms(), self.TIMEOUT if timeout is None else timeout
        command = Command(new_id(), user, order, CommandState.QUEUED, created=now, deadline=now + int(limit * 1000))
        return await self.commands.request(NewCommand(command))

    async def boot(self, *, user: str = USER, image: str | None = None, timeout: float | None = None) -> Command:
        order = BootDesktop(desktop=new_id(), image=self.image if image is None else image)
        return await self.ask(order, user=user, timeout=timeout)

    async def destroy(self, desktop: str | None, *, user: str = USER, timeout: float | None = None) -> Command:
        assert desktop is not None
        return await self.ask(DestroyDesktop(desktop=desktop), user=user, timeout=timeout)
