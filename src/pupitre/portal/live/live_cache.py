"""What live events were told last, kept: desktops that somebody watches with their commands, hosts and links.

Every change is read once, for all streams, so a stream need not ask the databases what its news
look like. Only `pupitre.portal.live.events` writes here, one look after the other: what is written
later was read later.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pupitre.domain.command import Command
from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.status import ClusterLink, Rows

MOST = 20_000
"""Desktops kept at most; then those go that were not looked at for the longest time."""


@dataclass(slots=True)
class Watched:
    """A desktop's row, None while the cluster has not spoken of it, and its commands by id."""

    row: Desktop | None
    orders: dict[str, Command] = field(default_factory=dict)

    @property
    def commands(self) -> list[Command]:
        """Oldest first."""
        return [command for _, command in sorted(self.orders.items())]


class Latest:
    def __init__(self) -> None:
        self._desktops: OrderedDict[str, Watched] = OrderedDict()
        self.hosts: dict[str, Host] = {}
        self.links: list[ClusterLink] = []

    def desktop(self, desktop_id: str) -> Watched | None:
        """None where it has to be read first."""
        if found := self._desktops.get(desktop_id):
            self._desktops.move_to_end(desktop_id)
        return found

    def keep(self, desktop_id: str, watched: Watched) -> None:
        """It was read whole."""
        self._desktops[desktop_id] = watched
        if len(self._desktops) > MOST:
            self._desktops.popitem(last=False)

    def commands_changed(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if watched := self._desktops.get(command.desktop or ""):
                watched.orders[command.id] = command

    def status_changed(self, rows: Rows, names: Iterable[str] | None) -> None:
        """``names`` are those of all hosts there are, None where no host was taken away."""
        for desktop in rows.desktops:
            if watched := self._desktops.get(desktop.id):
                watched.row = desktop
        self.hosts |= {host.name: host for host in rows.hosts}
        if names is not None:
            self.hosts = {name: self.hosts[name] for name in names if name in self.hosts}

    def forget(self) -> None:
        """What is watched: nobody reads, or has read, what changes."""
        self._desktops.clear()

    def begin(self, hosts: Iterable[Host], links: list[ClusterLink]) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.links = links
