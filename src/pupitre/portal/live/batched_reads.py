"""Batched reads: what many requests and streams ask the databases at the same moment, asked once for all of them.

Each question sees all that was committed before it was asked: who asks while a query
is under way waits for the next one.
"""

from collections.abc import Sequence

from pupitre.domain.command import Command
from pupitre.domain.desktop import Desktop
from pupitre.runtime.batch import Batch
from pupitre.store.commands import Commands
from pupitre.store.status import Status


class BatchedReads:
    """``do(id)`` of each raises `Unavailable`.

    ``desktop`` gives the row of a desktop, ``commands`` its commands, oldest first; ``counted``, by user, the
    desktops with a row that counts, and the version of the commands that was read before.
    """

    def __init__(self, commands: Commands, status: Status) -> None:
        self._commands = commands
        self._status = status
        self.desktop: Batch[str, Desktop | None] = Batch(self._desktops)
        self.commands: Batch[str, list[Command]] = Batch(self._commands_of)
        self.counted: Batch[str, tuple[int, frozenset[str]]] = Batch(self._counted)

    async def _desktops(self, ids: Sequence[str]) -> list[Desktop | None]:
        found = {row.id: row for row in await self._status.desktops(set(ids))}
        return [found.get(id) for id in ids]

    async def _commands_of(self, desktops: Sequence[str]) -> list[list[Command]]:
        found = await self._commands.of_desktops(set(desktops))
        return [found.get(desktop, []) for desktop in desktops]

    async def _counted(self, users: Sequence[str]) -> list[tuple[int, frozenset[str]]]:
        version = await self._commands.version()  # in this order: see `desktops_counted`
        found = await self._status.counted(set(users))
        return [(version, found.get(user, frozenset())) for user in users]
