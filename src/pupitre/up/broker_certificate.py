"""Has the message broker's certificate renewed when it is due, and the broker read its files again when they change.

`renewal`, a process of its own, issues it: this one must not carry what that needs for the rest of its life.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from pupitre.config import Settings
from pupitre.timings import BROKER_CERTIFICATE_LOOK

RETRY = 10
"""Looks at the files until a renewal that failed is tried again."""


class Due(NamedTuple):
    at: float
    """Unix time."""
    look: float
    """Seconds between two looks at the files."""


class BrokerCertificate:
    """``renew`` issues a new one, if it can; ``reload`` tells the broker."""

    def __init__(self, settings: Settings, *, renew: Callable[[], Awaitable[None]], reload: Callable[[], None]) -> None:
        self._noted = settings.run_dir / "renewal.json"
        folder = settings.pki_dir / "nats"
        self._files = (folder / "nats.crt", folder / "nats.key", folder / "ca.crt")
        self._renew = renew
        self._reload = reload

    async def keep(self) -> None:
        """Renew the broker's certificate in time, until cancelled."""
        stamp, retry_at = self._stamp(), 0.0
        while True:
            due = self._due()
            await asyncio.sleep(due.look)
            if time.time() >= max(due.at, retry_at):
                await self._renew()
                retry_at = time.time() + RETRY * due.look
            seen = self._stamp()
            if seen != stamp:
                stamp = seen
                self._reload()

    def _due(self) -> Due:
        try:
            noted = json.loads(self._noted.read_text())
            return Due(float(noted["due"]), float(noted["look"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Due(float("inf"), BROKER_CERTIFICATE_LOOK)

    def _stamp(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._files)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino
