"""Batched reads: what many requests ask the databases at the same moment, asked once for all of them.

Each question sees all that was committed before it was asked: a request that asks while a query
is under way waits for the next one.
"""

from collections.abc import Sequence

from pupitre.domain.command import Command
from pupitre.portal.live.status_mirror import StatusMirror
from pupitre.runtime.batch import Batch
from pupitre.store.commands import Commands


class BatchedReads:
    """``do(id)`` of each raises `Unavailable`.

    ``commands`` gives the commands of a desktop, oldest first; ``counted``, by user, the desktops with a row
    that counts, and the version of the commands that was read before.
    """

    def __init__(self, commands: Commands, status: StatusMirror) -> None:
        self._commands = commands
        self._status = status
        self.commands: Batch[str, list[Command]] = Batch(self._commands_of)
        self.counted: Batch[str, tuple[int, frozenset[str]]] = Batch(self._counted)

    async def _commands_of(self, desktops: Sequence[str]) -> list[list[Command]]:
        found = await self._commands.of_desktops(set(desktops))
        return [found.get(desktop, []) for desktop in desktops]

    async def _counted(self, users: Sequence[str]) -> list[tuple[int, frozenset[str]]]:
        version = await self._commands.version()  # in this order: see `desktops_counted`
        await self._status.refresh()
        return [(version, self._status.counted_of(user)) for user in users]
