"""What many requests and streams ask the databases at the same moment, asked once for all of them.

Each question sees all that was committed before it was asked: who asks while a query
is under way waits for the next one.
"""

from collections.abc import Sequence

from pupitre.domain.command import Command
from pupitre.domain.desktop import Desktop
from pupitre.runtime.batch import Batch
from pupitre.store.commands import Commands
from pupitre.store.status import Status


class Lookups:
    """``do(id)`` of each raises `Unavailable`.

    ``desktop`` gives the row of a desktop, ``orders`` its commands, oldest first;
    ``counted``, by user, the ids of the desktops that count against the limit.
    """

    def __init__(self, commands: Commands, status: Status) -> None:
        self._commands = commands
        self._status = status
        self.desktop: Batch[str, Desktop | None] = Batch(self._desktops)
        self.orders: Batch[str, list[Command]] = Batch(self._orders)
        self.counted: Batch[str, frozenset[str]] = Batch(self._counted)

    async def _desktops(self, ids: Sequence[str]) -> list[Desktop | None]:
        found = {row.id: row for row in await self._status.desktops(set(ids))}
        return [found.get(id) for id in ids]

    async def _orders(self, desktops: Sequence[str]) -> list[list[Command]]:
        found = await self._commands.of_desktops(set(desktops))
        return [found.get(desktop, []) for desktop in desktops]

    async def _counted(self, users: Sequence[str]) -> list[frozenset[str]]:
        found = await self._status.counted(set(users))
        return [found.get(user, frozenset()) for user in users]
