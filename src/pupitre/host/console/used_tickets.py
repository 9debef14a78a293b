"""Ids of used tickets, remembered until they expire: a ticket opens one console, on any gateway.

Each id is appended to a file before it counts, so that an agent that was killed
and started again refuses it too. A write without fsync is enough: after a power
cut the guests are gone, and a ticket names the boot generation of its guest.
"""

import heapq
import os
import time
from pathlib import Path

from pupitre.domain.ticket import TicketRefused
from pupitre.errors import Unavailable
from pupitre.timings import TICKET_LIFE

MAX_REMEMBERED = 100_000
REWRITE_AT = 4096
"""Lines beyond the remembered ids at which the file is written anew."""


class UsedTickets:
    """The set of used ids, in memory and in ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: set[str] = set()
        self._by_expiry: list[tuple[float, str]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                expires, space, ident = line.partition(" ")
                if space and _is_number(expires):  # a line cut short by a full disk is none
                    self._remember(ident, float(expires))
        self._file = -1
        self._forget(time.time())
        self._rewrite()

    def consume(self, ident: str, expires: float) -> None:
        """Use up ``ident``, which expires at Unix second ``expires``. Raises `TicketRefused`, `Unavailable`."""
        now = time.time()
        self._forget(now)
        if ident in self._ids:
            raise TicketRefused("The ticket has been used. Open the console again.")
        if expires > now + TICKET_LIFE:
            raise TicketRefused("The ticket is valid for longer than any ticket may be. Compare the machines' clocks.")
        if len(ident) > 128 or not ident.isprintable():
            raise TicketRefused("The ticket's id is malformed.")
        if len(self._ids) >= MAX_REMEMBERED:
            raise TicketRefused("Too many consoles are being opened. Try again in a minute.")
        try:
            os.write(self._file, f"{expires} {ident}\n".encode())
        except OSError as error:
            raise Unavailable(f"The host cannot note that the ticket is used: {error.strerror}.") from error
        self._remember(ident, expires)
        self._lines += 1
        if self._lines > len(self._ids) + REWRITE_AT:
            self._rewrite()

    def has(self, ident: str) -> bool:
        """Whether ``ident`` is used up, and has not expired since."""
        self._forget(time.time())
        return ident in self._ids

    def close(self) -> None:
        """May be repeated."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _remember(self, ident: str, expires: float) -> None:
        self._ids.add(ident)
        heapq.heappush(self._by_expiry, (expires, ident))

    def _forget(self, now: float) -> None:
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._ids.discard(heapq.heappop(self._by_expiry)[1])

    def _rewrite(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text("".join(f"{expires} {ident}\n" for expires, ident in self._by_expiry))
        new.replace(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(self._ids)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
