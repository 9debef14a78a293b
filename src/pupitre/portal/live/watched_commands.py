"""Watched commands: the commands of desktops that open streams have asked for, kept as they change."""

from collections import OrderedDict
from collections.abc import Iterable

from pupitre.domain.command import Command

MOST = 20_000
"""Desktops kept at most; then those go that were not looked at for the longest time."""


class WatchedCommands:
    def __init__(self) -> None:
        self._by_desktop: OrderedDict[str, dict[str, Command]] = OrderedDict()

    def get(self, desktop_id: str) -> list[Command] | None:
        """The desktop's commands, oldest first; None where they have to be read first."""
        if (found := self._by_desktop.get(desktop_id)) is None:
            return None
        self._by_desktop.move_to_end(desktop_id)
        return [command for _, command in sorted(found.items())]

    def keep(self, desktop_id: str, commands: Iterable[Command]) -> None:
        """All commands of the desktop were read."""
        self._by_desktop[desktop_id] = {command.id: command for command in commands}
        if len(self._by_desktop) > MOST:
            self._by_desktop.popitem(last=False)

    def change(self, commands: Iterable[Command]) -> None:
        """These commands have changed, or are new."""
        for command in commands:
            if (kept := self._by_desktop.get(command.desktop or "")) is not None:
                kept[command.id] = command

    def clear(self) -> None:
        """Forget all: nobody reads, or has read, what changes."""
        self._by_desktop.clear()
